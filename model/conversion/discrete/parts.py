"""Parts of a published model folder: JSON files, sharded weights, a CLIP text encoder, a tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from model.checkpoint import CheckpointError, save_checkpoint
from model.conversion.diffusers_folders import read_json, read_shards
from model.conversion.foreign_weights import ForeignWeights, read_foreign_weights
from model.conversion.options import Licence, Options
from model.discrete_config import MaskedConfig
from model.networks.autoencoders.vqgan_tokenizer import VqganTokenizer, load_vq_model
from model.networks.autoregressive_model import AutoregressiveModel

C = TypeVar("C", bound=MaskedConfig)
M = TypeVar("M", bound=AutoregressiveModel)

#: Files of a tokenizer that transformers reads.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "spiece.model", "tokenizer.model", "chat_template.json", "chat_template.jinja",
    "processor_config.json",
)  # fmt: skip


def read_folder(folder: Path) -> ForeignWeights:
    """All weights of a folder: one file, or the shards of an index; safetensors if there are any.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    for suffix in (".safetensors", ".bin", ".pth"):
        indices = sorted(folder.glob(f"*{suffix}.index.json"))
        if indices:
            return read_shards(indices[0])
        plain = [file for file in sorted(folder.glob(f"*{suffix}")) if ".fp16." not in file.name]
        files = plain or sorted(folder.glob(f"*{suffix}"))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise CheckpointError(f"{folder} has several weight files and no index: {names}; leave one")
        if files:
            return read_foreign_weights(files[0])
    raise CheckpointError(f"{folder} holds no weights: neither *.safetensors nor *.bin")


def take_all(source: ForeignWeights, module: nn.Module, prefix: str = "", ignore: str = "\0") -> None:
    """Fill a module whose names are those of the source, behind `prefix`; strict by name and shape.

    Raises:
        CheckpointError: names the first key or shape that does not fit.
    """
    for key, own in module.state_dict().items():
        own.copy_(source.take(prefix + key, own.shape))
    source.finish(ignore)


def sized(raw: dict[str, Any], known: dict[str, Any], fixed: dict[str, Any], where: Path) -> dict[str, Any]:
    """The sizes of a config.json: defaults of `known`, and keys of `fixed` that have one supported value.

    Raises:
        CheckpointError: a key is unknown, or has a value that is not supported.
    """
    found = dict(known)
    for key, value in raw.items():
        if key.startswith("_"):
            continue
        if key in fixed:
            if value != fixed[key]:
                raise CheckpointError(f"{where}: {key} {value!r} is not supported, only {fixed[key]!r}")
        elif key not in known:
            raise CheckpointError(f"{where}: unknown key {key!r}; this version would ignore it")
        else:
            found[key] = value
    return found


def read_masked(
    source: Path, config_of: Callable[[Path, VqganTokenizer], C], build: Callable[[C], M], prefix: str
) -> tuple[M, VqganTokenizer]:
    """Read model and image tokenizer of a pipeline folder of aMUSEd's layout, which Meissonic shares.

    Args:
        config_of: the sizes, from the folder and its tokenizer.
        prefix: of our names in front of the released ones.
    Raises:
        CheckpointError, ConfigError: the message names the first key, shape or size that does not fit.
    """
    tokenizer = load_vq_model(source / "vqvae", unit_pixels=True)
    weights = read_folder(source / "transformer")
    model = build(config_of(source, tokenizer))
    for key, own in model.state_dict().items():
        if key == "head.weight":
            own.copy_(weights.take("mlm_layer.conv2.weight", (*own.shape, 1, 1))[..., 0, 0])
        elif key != "head.bias":  # the released layer has none; it starts as zero
            own.copy_(weights.take(key.removeprefix(prefix), own.shape))
    weights.finish()
    return model, tokenizer


def read_mask_token(source: Path) -> int:
    """The mask token that a pipeline folder's scheduler names.

    Raises:
        CheckpointError: the file is missing, or describes another schedule.
    """
    file = source / "scheduler" / "scheduler_config.json"
    token: int = sized(read_json(file), {"mask_token_id": 8255}, {"masking_schedule": "cosine"}, file)["mask_token_id"]
    return token


def copy_clip(source: Path, target: Path, widths: tuple[int, int], dtype: torch.dtype) -> None:
    """Copy a pipeline's CLIP text encoder and tokenizer, checked against the class that will load them.

    Args:
        source: the pipeline's folder. target: the checkpoint's.
        widths: of states and pooled embedding that the model expects.
    Raises:
        CheckpointError: names the first key or shape that does not fit.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = source / "text_encoder"
    config = CLIPTextConfig(**read_json(folder / "config.json"))
    if (config.hidden_size, config.projection_dim) != widths:
        raise CheckpointError(
            f"{folder} is {config.hidden_size} wide with an embedding of {config.projection_dim}; the model expects "
            f"{widths[0]} and {widths[1]}"
        )
    with torch.device("meta"):
        wanted = CLIPTextModelWithProjection(config).state_dict()
    weights = read_folder(folder)
    state = {key: weights.take(key, own.shape).to(dtype).contiguous() for key, own in wanted.items()}
    weights.finish(ignore="text_model.embeddings.position_ids")  # a buffer of older versions
    (target / "text_encoder").mkdir()
    save_file(state, target / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(folder / "config.json", target / "text_encoder" / "config.json")
    copy_tokenizer(source / "tokenizer", target / "tokenizer")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files.

    Raises:
        CheckpointError: there are none.
    """
    files = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not any(file.name in ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model") for file in files):
        raise CheckpointError(f"{source} holds no tokenizer: neither tokenizer.json nor vocab.json")
    target.mkdir()
    for file in files:
        shutil.copyfile(file, target / file.name)


def about(
    name: str, description: str, licence: Licence, steps: dict[str, int], defaults: dict[str, Any]
) -> dict[str, Any]:
    """The `about` entry of config.json. steps: num_inference_steps of each preset."""
    return {
        "name": name,
        "description": description,
        **licence.about(),
        "sampling": {
            "presets": {preset: {"num_inference_steps": n, "diffusion_steps": 1} for preset, n in steps.items()},
            "defaults": {"quality": "medium", "guidance_schedule": "constant", "temperature": 1.0, **defaults},
        },
    }


def write(
    folder: Path, model: AutoregressiveModel, tokenizer: nn.Module, facts: dict[str, Any], options: Options
) -> None:
    """Write the checkpoint into `folder` and report its size."""
    size = sum(p.numel() for p in (*model.parameters(), *tokenizer.parameters()))
    options.report(f"writing {facts['name']}, {size / 1e6:.1f}M parameters with the image tokenizer")
    save_checkpoint(folder, model, tokenizer, facts, options.dtype)  # type: ignore[arg-type]
