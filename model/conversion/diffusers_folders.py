"""Folders in diffusers' layout: a component's config.json beside its weights, and AutoencoderKL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import CheckpointError
from model.config import KlConfig
from model.conversion.foreign_weights import ForeignWeights, read_foreign_weights
from model.networks.autoencoders.kl_tokenizer import KlTokenizer

STEM = "diffusion_pytorch_model"
# Keys of AutoencoderKL's config.json that have one supported value.
FIXED = {
    "in_channels": 3, "out_channels": 3, "act_fn": "silu", "mid_block_add_attention": True, "use_quant_conv": True,
    "use_post_quant_conv": True,
}  # fmt: skip
# Names of the middle attention's layers, before diffusers renamed them.
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def component_class(folder: Path) -> str:
    """`_class_name` in the folder's config.json; "" without one. For recognising, so nothing is an error."""
    try:
        return str(read_json(folder / "config.json").get("_class_name", ""))
    except CheckpointError:
        return ""


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing or not an object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); download the whole folder") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is not a JSON object; download it again")
    return found


def read_shards(index: Path) -> ForeignWeights:
    """The weights of all files that an index names; they lie beside it.

    Raises:
        CheckpointError: a file is missing, damaged or elsewhere.
    """
    state: dict[str, Tensor] = {}
    for name in sorted(set(read_json(index).get("weight_map", {}).values())):
        if Path(name).name != name:
            raise CheckpointError(f"{index} names a file elsewhere: {name!r}")
        state |= read_foreign_weights(index.parent / name).tensors()
    return ForeignWeights(index, state)


def read_component(folder: Path) -> ForeignWeights:
    """The weights of one component: one safetensors file, shards with an index, or a torch file.

    Raises:
        CheckpointError: there are none, or a file is missing or damaged.
    """
    index = folder / f"{STEM}.safetensors.index.json"
    if index.is_file():
        return read_shards(index)
    for name in (f"{STEM}.safetensors", f"{STEM}.bin"):
        if (folder / name).is_file():
            return read_foreign_weights(folder / name)
    raise CheckpointError(f"{folder} has no {STEM}.safetensors; download the whole folder")


def read_autoencoder(folder: Path, patch: int, strip: int = 0) -> KlTokenizer:
    """Read an AutoencoderKL, as Stable Diffusion and SDXL have it.

    Args:
        patch: patch × patch latents make one token.
        strip: rows of latents in the strips that images are decoded in; 0: whole images.

    Raises:
        CheckpointError: it is another model, has unsupported parts, or weights that do not fit.
    """
    raw, file = read_json(folder / "config.json"), folder / "config.json"
    if raw.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise CheckpointError(f"{file} describes a {raw['_class_name']}, not an AutoencoderKL")
    for key, value in FIXED.items():
        if raw.get(key, value) != value:
            raise CheckpointError(f"{file}: {key} is {raw[key]!r}; only {value!r} is supported")
    if raw.get("shift_factor"):
        raise CheckpointError(f"{file}: shift_factor is {raw['shift_factor']!r}; only 0 is supported")
    try:
        tokenizer = KlTokenizer(_kl_config(raw, patch, strip))
    except KeyError as error:
        raise CheckpointError(f"{file} has no {error}") from error
    source = read_component(folder)
    with torch.no_grad():
        for key, own in tokenizer.vae.state_dict().items():
            own.copy_(source.take(_stored_name(source, key), own.shape))
    source.finish()
    return tokenizer


def _kl_config(raw: dict[str, Any], patch: int, strip: int) -> KlConfig:
    kinds = {*raw.get("down_block_types", ()), *raw.get("up_block_types", ())}
    if not kinds <= {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
        odd = sorted(kinds - {"DownEncoderBlock2D", "UpDecoderBlock2D"})[0]
        raise CheckpointError(f"the autoencoder has blocks of type {odd!r}, which are not supported")
    return KlConfig(
        widths=tuple(raw["block_out_channels"]), layers=raw.get("layers_per_block", 1),
        groups=raw.get("norm_num_groups", 32), latent_channels=raw["latent_channels"], attention=False, patch=patch,
        scale=raw.get("scaling_factor", 0.18215), strip=strip,
    )  # fmt: skip


def _stored_name(source: ForeignWeights, key: str) -> str:
    """The name under which a file has our `key`: the same, or the one of before the renaming."""
    if key in source or ".attentions." not in key:
        return key
    head, name = key.split(".attentions.0.", 1)
    layer, leaf = name.rsplit(".", 1)
    return f"{head}.attentions.0.{OLD_ATTENTION.get(layer, layer)}.{leaf}"
