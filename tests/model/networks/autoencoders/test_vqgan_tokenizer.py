"""A VQModel of diffusers loads strictly, and computes what diffusers' own class computes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import ConfigError, VqganConfig
from model.networks.autoencoders.vqgan_tokenizer import WEIGHTS, VqganTokenizer, is_vq_model, load_vq_model
from model.tokenizer_config import tokenizer_from_json

pytest.importorskip("diffusers")

SIZES: dict[str, Any] = {
    "block_out_channels": (8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4,
    "vq_embed_dim": 6, "num_vq_embeddings": 32,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    # As in the autoencoder of latent diffusion's VQ models, and as in amused's.
    "attention": {
        "down_block_types": ("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    },
    "amused": {
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        "mid_block_add_attention": False, "lookup_from_codebook": True, "force_upcast": True,
    },
    "movq": {
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_type": "spatial", "block_out_channels": (32, 32, 32), "norm_num_groups": 32, "vq_embed_dim": 4,
    },
}  # fmt: skip


def _saved(folder: Path, variant: str) -> Any:
    """A VQModel of diffusers with random weights, saved to `folder`."""
    from diffusers.models.autoencoders.vq_model import VQModel

    torch.manual_seed(7)
    model = VQModel(**{**SIZES, **VARIANTS[variant]}).eval().requires_grad_(False)
    model.quantize.embedding.weight.normal_(0, 0.5)  # as it starts, a handful of codes would be nearest to everything
    model.save_pretrained(folder)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_codes_and_images_as_diffusers(tmp_path: Path, variant: str) -> None:
    theirs, pixels = _saved(tmp_path, variant), torch.rand(2, 3, 32, 32) * 2 - 1
    assert is_vq_model(tmp_path)
    tokenizer = load_vq_model(tmp_path)
    with torch.no_grad():
        codes = tokenizer.encode(pixels)
        latents = theirs.encode(pixels).latents
        assert codes.shape == (2, 8, 8) and codes.dtype == torch.int64
        assert torch.equal(codes.flatten(), theirs.quantize(latents)[2][2].flatten())
        assert len(codes.unique()) > 4
        torch.testing.assert_close(tokenizer.decode(codes), theirs.decode(latents).sample)
        assert torch.equal(tokenizer.embed(codes), theirs.quantize.embedding.weight[codes])
    assert tokenizer_from_json(json.loads(json.dumps(asdict(tokenizer.config)))) == tokenizer.config


def save_small(folder: Path) -> dict[str, Any]:
    """The smallest VQModel in `folder`, written without diffusers' saving; returns its config.json."""
    config = VqganConfig(widths=(4, 4), layers=1, groups=2, latent_channels=2, channels=2, codebook=4)
    folder.mkdir(exist_ok=True)
    save_file(VqganTokenizer(config).vq.state_dict(), folder / WEIGHTS)
    raw = {
        "_class_name": "VQModel", "_diffusers_version": "0.42.1", "in_channels": 3, "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [4, 4], "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 2,
        "num_vq_embeddings": 4, "vq_embed_dim": None, "sample_size": 32, "scaling_factor": 0.18215,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw))
    return raw


def test_loading_is_strict(tmp_path: Path) -> None:
    raw = save_small(tmp_path)
    tokenizer = load_vq_model(tmp_path)
    assert tokenizer.config.channels == 2
    table = tokenizer.vq.quantize.embedding.weight
    assert torch.equal(tokenizer.embed(torch.tensor([-1, 3])), torch.stack([table.mean(0), table[3]]))  # -1: undecided
    wrong = {
        "out_channels": (4, "out_channels other than 3"),
        "norm_type": ("batch", "norm_type 'batch'"),
        "_class_name": ("AutoencoderKL", "does not describe a VQModel"),
        "dropout": (0.1, "unknown key 'dropout'"),
        "down_block_types": (["SkipDownBlock2D"] * 2, "not supported"),
        "num_vq_embeddings": (5, "config.json asks for"),
        "mid_block_add_attention": (False, "not known"),
        "layers_per_block": (2, "is missing"),
    }
    for key, (value, says) in wrong.items():
        (tmp_path / "config.json").write_text(json.dumps({**raw, key: value}))
        with pytest.raises(ConfigError, match=says):
            load_vq_model(tmp_path)


def test_weights_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_vq_model(tmp_path)
    save_small(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    save_file({**state, "extra": torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(ConfigError, match="'extra' is not known"):
        load_vq_model(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="damaged"):
        load_vq_model(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match="safe_serialization"):
        load_vq_model(tmp_path)
