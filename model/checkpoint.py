"""A checkpoint is a folder: config.json (every size, and metadata about the weights) and sharded safetensors.

Loading is strict: unknown or missing keys, wrong shapes and damaged files are errors that name the cause, and `sha256`
in the configuration must match the weights, so that the hash in an image's metadata identifies them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluid_kernels.allocation import is_out_of_memory
from model.config import ConfigError, ModelConfig
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.factory import AnyTokenizer, build_model, build_tokenizer, config_from_json, frozen
from model.networks.layers.eight_bits import lacks_scales, narrowed, take

SHARD_BYTES = 2 << 30
# Format 2 has matrices in 8 bits (eight_bits.py), which earlier versions would refuse by their shape.
FORMAT, FORMAT_8_BITS = 1, 2
# What config.json's `about` may hold that is shown, or looked up.
TEXTS = {"name", "license", "conditions", "source", "description"}
GRAMMAR = ("caption_words", "backgrounds")  # words of captions beside the names of things
LISTS = {"labels", "styles", "vocabulary", "synonyms", "breadth", "breadth_styles", "examples", *GRAMMAR}


class CheckpointError(RuntimeError):
    """A checkpoint folder cannot be used; the message names the first fault and its remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """Loaded weights with their metadata."""

    model: AutoregressiveModel
    tokenizer: AnyTokenizer
    about: dict[str, Any]  # name, training, data, licences, vocabulary, metrics
    sha256: str  # of the weight files
    folder: Path = Path()

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def unscored(self) -> dict[str, Any]:
        """The metadata without scores, which other weights made from these do not have."""
        return {key: value for key, value in self.about.items() if key != "metrics"}


def save_checkpoint(
    folder: Path, model: AutoregressiveModel, tokenizer: AnyTokenizer, about: dict[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:  # fmt: skip
    """Write a checkpoint with floats as `dtype`. config.json comes last: if it exists, the weights are complete.

    Args:
        dtype: int8 means the model's matrices in 8 bits and all else in bfloat16.
    """
    eight_bits = dtype == torch.int8
    dtype = torch.bfloat16 if eight_bits else dtype
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{k}": v.detach() for k, v in model.state_dict().items()}
    state = narrowed(state) if eight_bits else state
    state |= {f"tokenizer.{k}": v for k, v in tokenizer.state_dict().items()}
    state = {k: v.detach().cpu().to(dtype if v.is_floating_point() else v.dtype).contiguous() for k, v in state.items()}
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key in sorted(state):
        if size and size + state[key].nbytes > SHARD_BYTES:
            shards, size = [*shards, {}], 0
        shards[-1][key] = state[key]
        size += state[key].nbytes
    # Beside those of an earlier save, which stay complete until the new ones are.
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for number, shard in enumerate(shards):
        file = partial / f"weights-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, file)
        file.chmod(0o644)  # safetensors writes 0600; a worker may run as another user
    raw = {
        "format": FORMAT_8_BITS if eight_bits else FORMAT,
        "sha256": weights_digest(partial),
        "model": model.config.to_json(),
        "about": about,
    }
    (partial / "config.json").write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "config.json").unlink(missing_ok=True)
    for old in folder.glob("weights-*.safetensors"):
        old.unlink()
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(folder / file.name)
    partial.rmdir()


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json, with the folder's name where about.name is missing. Sizes are not checked.

    Raises:
        CheckpointError: config.json is missing, damaged, in another format, or without one of its parts.
    """
    file = folder / "config.json"
    if not file.exists():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json. Train one with `make train`")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not JSON ({error}); copy the checkpoint again") from error
    if not isinstance(raw, dict) or raw.get("format") not in (FORMAT, FORMAT_8_BITS):
        raise CheckpointError(f"{file} is not in a format that this version reads ({FORMAT}, {FORMAT_8_BITS})")
    for part, kind, words in (("model", dict, "an object"), ("about", dict, "an object"), ("sha256", str, "text")):
        if not isinstance(raw.get(part), kind):
            raise CheckpointError(f"{file}: {part} is {raw.get(part)!r}, not {words}; copy the checkpoint again")
    about = raw["about"]
    about.setdefault("name", folder.resolve().name)
    for part in TEXTS & about.keys():
        if not isinstance(about[part], str):
            raise CheckpointError(f"{file}: about.{part} is {about[part]!r}, not text; copy the checkpoint again")
    hints = about.get("hints", {})
    if not isinstance(hints, dict) or not all(map(_texts, hints.values())):
        raise CheckpointError(f"{file}: about.hints does not map words to lists of names; copy the checkpoint again")
    for part in LISTS & about.keys():
        if not _texts(about[part]):
            raise CheckpointError(f"{file}: about.{part} is not a list of texts; copy the checkpoint again")
    return raw


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


@contextmanager
def checked_sizes(folder: Path) -> Iterator[None]:
    """Turn what sizes of config.json raise that cannot be built into one error.

    Raises:
        CheckpointError: names the file and the fault.
    """
    file = folder / "config.json"
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{file}: its sizes cannot be built ({type(error).__name__}: {error}); copy the checkpoint again"
        ) from error


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weight files in name order."""
    hasher = hashlib.sha256()
    for file in sorted(folder.glob("weights-*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                hasher.update(block)
    return hasher.hexdigest()


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read and check a checkpoint; weights become float32 on `device`, ready for inference.

    Raises:
        CheckpointError: the folder cannot be used; see its message.
    """
    raw = read_config(folder)
    with checked_sizes(folder):
        config = config_from_json(raw["model"])
    digest = weights_digest(folder)
    if digest != raw["sha256"]:
        raise CheckpointError(
            f"{folder}: the weights' SHA-256 is {digest[:12]}…, config.json says {raw['sha256'][:12]}…; "
            "a file is damaged or missing: copy the checkpoint again"
        )
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("weights-*.safetensors")):
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged ({error}); copy the checkpoint again") from error
    if narrow := lacks_scales(state):
        raise CheckpointError(f"{folder}: matrix {narrow!r} is in 8 bits without its scales; copy the checkpoint again")
    with checked_sizes(folder):
        model, tokenizer = build_model(config), build_tokenizer(config.tokenizer)
    _load_strict(model, state, "model.", folder)
    _load_strict(tokenizer, state, "tokenizer.", folder)
    if state:
        raise CheckpointError(f"{folder}: unknown key {min(state)!r}; this version would ignore it")
    return Checkpoint(frozen(model, device), frozen(tokenizer, device), raw["about"], digest, folder)


def _load_strict(module: torch.nn.Module, state: dict[str, Tensor], prefix: str, folder: Path) -> None:
    """Move the entries under `prefix` from `state` into the module; every key and shape must match."""
    for key, own in module.state_dict().items():
        found = take(state, prefix + key)
        if found is None:
            raise CheckpointError(f"{folder}: key {prefix + key!r} is missing from the weights")
        if found.shape != own.shape:
            raise CheckpointError(
                f"{folder}: {prefix + key!r} has shape {tuple(found.shape)}, config.json asks for {tuple(own.shape)}"
            )
        own.copy_(found)
