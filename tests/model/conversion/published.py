"""Folders of random weights in the layouts that aMUSEd, Meissonic, Janus-Pro and LlamaGen are published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

CLIP_WIDTH, CLIP_POOLED, CODES = 16, 24, 60


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere, so that no zero or one hides a fault; of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            fan = value.shape[-1] if "embed" in name and value.ndim == 2 else value[0].numel()
            size = 0.2 if "mlm_layer.conv2" in name else 1.2  # logits that leave a choice under guidance
            value.data = noise * (1.0 if "embedding" in name else size * fan**-0.5)
        else:
            value.data = noise * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module.eval().requires_grad_(False)


def save_clip_tokenizer(folder: Path) -> int:
    """CLIP's tokenizer with letters only; returns the number of its entries."""
    letters = "abcdefghijklmnopqrstuvwxyz,.!0123456789"
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "!</w>"})
    )
    return len(vocabulary)


def save_clip(folder: Path, width: int = CLIP_WIDTH, pooled: int = CLIP_POOLED) -> None:
    """text_encoder and tokenizer of a pipeline folder."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    entries = save_clip_tokenizer(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=entries, hidden_size=width, intermediate_size=2 * width, projection_dim=pooled, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=entries - 2, eos_token_id=entries - 1,
        pad_token_id=2,
    )  # fmt: skip
    lively(CLIPTextModelWithProjection(config)).save_pretrained(folder / "text_encoder")


def save_vq(folder: Path) -> None:
    """vqvae of a pipeline folder: stride 2."""
    from diffusers.models.autoencoders.vq_model import VQModel

    model = VQModel(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=6, num_vq_embeddings=CODES,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        mid_block_add_attention=False, lookup_from_codebook=True, force_upcast=True,
    )  # fmt: skip
    lively(model).save_pretrained(folder / "vqvae")


def save_scheduler(folder: Path) -> None:
    (folder / "scheduler").mkdir()
    raw = {"_class_name": "AmusedScheduler", "mask_token_id": 63, "masking_schedule": "cosine"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(raw))


def save_amused(folder: Path, halved: bool = False, grid: int = 4) -> Any:
    """A pipeline folder of aMUSEd; returns its transformer."""
    from diffusers.models.unets.uvit_2d import UVit2DModel

    model = UVit2DModel(
        hidden_size=32, cond_embed_dim=CLIP_POOLED, encoder_hidden_size=CLIP_WIDTH, vocab_size=64, codebook_size=CODES,
        in_channels=24, block_out_channels=16, num_res_blocks=1, downsample=halved, upsample=halved, block_num_heads=2,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, sample_size=grid,
    )  # fmt: skip
    lively(model).save_pretrained(folder / "transformer")
    save_vq(folder)
    save_clip(folder)
    save_scheduler(folder)
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "AmusedPipeline", "scheduler": ["diffusers", "AmusedScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "UVit2DModel"], "vqvae": ["diffusers", "VQModel"],
    }))  # fmt: skip
    return model
