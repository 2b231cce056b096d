"""A VQGAN (Esser et al. 2021, arXiv 2012.09841) as a discrete image tokenizer: the VQModel of diffusers.

`load_vq_model` reads a folder as `VQModel.save_pretrained` writes it: config.json and one safetensors file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model.config import ConfigError, VqganConfig
from model.tokenizer_config import read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASS = "VQModel"  # `_class_name` in config.json
# Keys of VQModel's config.json that have one supported value; all others are sizes, or have no effect on inference.
FIXED = {"in_channels": 3, "out_channels": 3, "act_fn": "silu"}
WITHOUT_EFFECT = {"sample_size", "scaling_factor", "lookup_from_codebook", "force_upcast"}


class VqganTokenizer(nn.Module):
    """Pixels in [-1, 1] <-> numbers of codes; weights under `vq` carry diffusers' names."""

    def __init__(self, config: VqganConfig):
        super().__init__()
        try:
            from diffusers.models.autoencoders.vq_model import VQModel
        except ImportError as error:
            raise ConfigError(
                "this checkpoint's image tokenizer is a VQGAN, which needs the package diffusers: "
                "pip install '.[mar]' in a clone"
            ) from error
        self.config = config
        levels = range(len(config.widths))
        self.vq = VQModel(
            block_out_channels=config.widths, layers_per_block=config.layers, norm_num_groups=config.groups,
            latent_channels=config.latent_channels, vq_embed_dim=config.channels, num_vq_embeddings=config.codebook,
            down_block_types=tuple(_block("Down", "Encoder", i in config.encoder_attention) for i in levels),
            up_block_types=tuple(_block("Up", "Decoder", i in config.decoder_attention) for i in levels),
            mid_block_add_attention=config.middle_attention, norm_type="spatial" if config.spatial_norm else "group",
        )  # fmt: skip

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, grid, grid) int64, the codes nearest to the latents."""
        latents = self.vq.encode(pixels / 2 + 0.5 if self.config.unit_pixels else pixels).latents  # (B, C, g, g)
        codes: Tensor = self.vq.quantize(latents)[2][2]
        return codes.view(len(latents), *latents.shape[2:])

    def embed(self, codes: Tensor) -> Tensor:
        """(...) numbers of codes -> (..., C) code vectors; that of -1, undecided, is the mean of all codes."""
        table: Tensor = self.vq.quantize.embedding.weight
        return torch.where((codes >= 0)[..., None], table[codes.clamp_min(0)], table.mean(0))

    def decode(self, codes: Tensor) -> Tensor:
        """(B, grid, grid) or (B, N) codes -> (B, 3, H, W), nominally in [-1, 1], not clipped."""
        vectors = self.embed(codes.flatten(1)).transpose(1, 2)  # (B, C, N)
        grid = round(vectors.shape[2] ** 0.5)
        decoded: Tensor = self.vq.decode(vectors.unflatten(2, (grid, grid)), force_not_quantize=True).sample
        return 2 * decoded - 1 if self.config.unit_pixels else decoded


def load_vq_model(folder: Path, unit_pixels: bool = False) -> VqganTokenizer:
    """Read a VQModel that diffusers saved; strict by name and shape. unit_pixels: see VqganConfig.

    Raises:
        ConfigError: the folder holds no VQModel, one with parts that are not supported, or weights that do not fit.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"{folder} holds no VQModel: it has no config.json")
    raw = read_json(file)
    try:
        tokenizer = VqganTokenizer(replace(vq_model_config(raw), unit_pixels=unit_pixels))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except (TypeError, AttributeError, ArithmeticError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{file} has sizes that cannot be built ({error}): copy it again") from error
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} has no {WEIGHTS}: save the VQModel with safe_serialization, in one file")
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder / WEIGHTS} is damaged ({error}); copy it again") from error
    own = tokenizer.vq.state_dict()
    if odd := sorted(own.keys() ^ state.keys()):
        raise ConfigError(f"{folder}: key {odd[0]!r} is {'missing' if odd[0] in own else 'not known'}")
    for key, tensor in own.items():
        if state[key].shape != tensor.shape:
            raise ConfigError(
                f"{folder}: {key!r} has shape {tuple(state[key].shape)}, config.json asks for {tuple(tensor.shape)}"
            )
    tokenizer.vq.load_state_dict({key: value.to(torch.float32) for key, value in state.items()})
    return tokenizer.eval()


def is_vq_model(folder: Path) -> bool:
    """Return True if the folder's config.json is that of a VQModel.

    Raises:
        ConfigError: config.json is damaged.
    """
    file = folder / "config.json"
    return file.is_file() and read_json(file).get("_class_name") == CLASS


def vq_model_config(raw: dict[str, Any]) -> VqganConfig:
    """The sizes in VQModel's config.json.

    Raises:
        ConfigError: it describes another class, or a VQModel with parts that are not supported.
    """
    raw = {key: value for key, value in raw.items() if key not in WITHOUT_EFFECT}
    if raw.pop("_class_name", None) != CLASS:
        raise ConfigError(f"config.json does not describe a {CLASS} of diffusers")
    raw = {key: value for key, value in raw.items() if not key.startswith("_")}
    for key, value in FIXED.items():
        if raw.pop(key, value) != value:
            raise ConfigError(f"{CLASS} with {key} other than {value!r} is not supported")
    widths = tuple(raw.pop("block_out_channels", (64,)))
    latent = raw.pop("latent_channels", 3)
    norm = raw.pop("norm_type", "group")
    if norm not in ("group", "spatial"):
        raise ConfigError(f"{CLASS} with norm_type {norm!r} is not supported: group or spatial")
    config = VqganConfig(
        widths=widths,
        layers=raw.pop("layers_per_block", 1),
        groups=raw.pop("norm_num_groups", 32),
        latent_channels=latent,
        channels=raw.pop("vq_embed_dim", None) or latent,
        codebook=raw.pop("num_vq_embeddings", 256),
        encoder_attention=_attention(raw.pop("down_block_types", ["DownEncoderBlock2D"]), "Down", "Encoder", widths),
        decoder_attention=_attention(raw.pop("up_block_types", ["UpDecoderBlock2D"]), "Up", "Decoder", widths),
        middle_attention=raw.pop("mid_block_add_attention", True),
        spatial_norm=norm == "spatial",
    )
    if raw:
        raise ConfigError(f"unknown key {min(raw)!r} in a {CLASS}'s config.json; this version would ignore it")
    return config


def _block(way: str, side: str, attention: bool) -> str:
    """Name of a block type in diffusers."""
    return f"{'Attn' if attention else ''}{way}{side}Block2D"


def _attention(types: list[str], way: str, side: str, widths: tuple[int, ...]) -> tuple[int, ...]:
    """Levels whose block type has attention."""
    names = [_block(way, side, False), _block(way, side, True)]
    if len(types) != len(widths) or not set(types) <= set(names):
        raise ConfigError(f"block types {types} are not supported: one of {names} for each of {len(widths)} widths")
    return tuple(level for level, name in enumerate(types) if name == names[1])
