"""Folders of random weights in the layouts that aMUSEd, Meissonic, Janus-Pro and LlamaGen are published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from model.config import VqganConfig
from model.conversion.discrete.vq_names import official_name
from model.networks.autoencoders.vqgan_tokenizer import VqganTokenizer

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


def save_meissonic(folder: Path, halved: bool) -> dict[str, torch.Tensor]:
    """A pipeline folder of Meissonic or Monetico; returns the transformer's weights."""
    width, heads = 32, 2
    shapes = meissonic_shapes(width, heads, halved)
    state = {}
    generator = torch.Generator().manual_seed(1)
    for name, shape in shapes.items():
        fan = 1 if len(shape) == 1 or "embeddings" in name else torch.Size(shape[1:]).numel()
        size = 0.1 if len(shape) == 1 else 0.2 if "mlm_layer.conv2" in name else 1.0
        state[name] = size * torch.randn(shape, generator=generator) * fan**-0.5
        if len(shape) == 1 and "norm" in name and name.endswith("weight"):
            state[name] += 1
    (folder / "transformer").mkdir(parents=True)
    save_file(state, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "config.json").write_text(json.dumps({
        "_class_name": "Transformer2DModel", "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": heads, "joint_attention_dim": CLIP_WIDTH, "pooled_projection_dim": width,
        "axes_dims_rope": [4, 8, 4], "vocab_size": 64, "codebook_size": CODES, "downsample": halved, "upsample": halved,
        "patch_size": 1, "in_channels": 64, "guidance_embeds": False,
    }))  # fmt: skip
    save_vq(folder)
    save_clip(folder, pooled=width)
    save_scheduler(folder)
    return state


def meissonic_shapes(width: int, heads: int, halved: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released transformer with one double and two single blocks."""
    d, head = width, width // heads
    shapes: dict[str, tuple[int, ...]] = {
        "embed.embeddings.weight": (64, d), "embed.layer_norm.weight": (d,), "embed.conv.weight": (d, d, 1, 1),
        "project_to_hidden_norm.weight": (d,), "project_to_hidden.weight": (d, d),
        "project_from_hidden_norm.weight": (d,), "project_from_hidden.weight": (d, d),
        "encoder_proj_layer_norm.weight": (d,), "cond_embed.linear_1.weight": (d, 5 * 256 + d),
        "cond_embed.linear_2.weight": (d, d), "mlm_layer.conv1.weight": (d, d, 1, 1),
        "mlm_layer.layer_norm.weight": (d,), "mlm_layer.conv2.weight": (CODES, d, 1, 1),
    }  # fmt: skip
    if halved:
        for part in ("down_block.downsample", "up_block.upsample"):
            shapes |= {f"{part}.norm.weight": (d,), f"{part}.conv.weight": (d, d, 2, 2)}

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    linear("context_embedder", d, CLIP_WIDTH)
    for part, into in (("timestep_embedder", 256), ("text_embedder", d)):
        linear(f"time_text_embed.{part}.linear_1", d, into)
        linear(f"time_text_embed.{part}.linear_2", d, d)
    block = "transformer_blocks.0"
    linear(f"{block}.norm1.linear", 6 * d, d)
    linear(f"{block}.norm1_context.linear", 6 * d, d)
    for layer in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
        linear(f"{block}.attn.{layer}", d, d)
    for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        shapes[f"{block}.attn.{norm}.weight"] = (head,)
    for part in ("ff", "ff_context"):
        linear(f"{block}.{part}.net.0.proj", 4 * d, d)
        linear(f"{block}.{part}.net.2", d, 4 * d)
    for i in range(2):
        block = f"single_transformer_blocks.{i}"
        linear(f"{block}.norm.linear", 3 * d, d)
        linear(f"{block}.proj_mlp", 4 * d, d)
        linear(f"{block}.proj_out", d, 5 * d)
        for layer in ("to_q", "to_k", "to_v"):
            linear(f"{block}.attn.{layer}", d, d)
        for norm in ("norm_q", "norm_k"):
            shapes[f"{block}.attn.{norm}.weight"] = (head,)
    return shapes


def save_janus(folder: Path) -> Any:
    """A folder of Janus-Pro in transformers' layout: 4 x 4 tokens, 8 px; returns its model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

    words = ["<bos>", "<pad>", "<begin_of_image>", "<unk>", "<|User|>", "<|Assistant|>", ":", "a", "red", "cat", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.add_special_tokens([word for word in words if word.startswith("<")])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", pad_token="<pad>").save_pretrained(folder)
    vq = {
        "embed_dim": 4, "num_embeddings": CODES, "latent_channels": 8, "num_patches": 4, "base_channels": 32,
        "channel_multiplier": [1, 1], "num_res_blocks": 1, "projection_dim": 32, "image_token_embed_dim": 32,
        "num_hidden_layers": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
        "num_image_tokens": 16, "projection_dim": 32, "depth": 2,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(words), "bos_token_id": 0,
        "pad_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    model = JanusForConditionalGeneration(JanusConfig(text_config=text, vision_config=vision, vq_config=vq))
    model.generation_config.generation_kwargs = {"boi_token_id": 2}
    lively(model).save_pretrained(folder)
    return model


def save_llamagen(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """The two files of LlamaGen, and a text encoder in `t5`; returns the model's file."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "a", "red", "cat", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(folder / "t5")
    config = T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    lively(T5EncoderModel(config)).save_pretrained(folder / "t5")
    vq = VqganConfig(
        widths=(32, 32), layers=1, latent_channels=8, channels=4, codebook=CODES, encoder_attention=(1,),
        decoder_attention=(0,),
    )  # fmt: skip
    tokens = {}
    for key, value in lively(VqganTokenizer(vq)).vq.state_dict().items():
        projection = ".attentions." in key and value.ndim == 2
        tokens[official_name(key, 2, llamagen=True)] = value[..., None, None] if projection else value
    torch.save({"model": {**tokens, "quantize.codebook_used": torch.zeros(9)}}, folder / "vq_ds16_t2i.pt")
    torch.save({"model": state, "steps": 1}, folder / "t2i_XL_stage1_256.pt")
    return folder / "t2i_XL_stage1_256.pt"
