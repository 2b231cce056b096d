"""A tokenizer in a folder of its own, for training: tokenizer.json with its sizes, tokenizer.safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.config import ConfigError
from model.networks.factory import AnyTokenizer, build_tokenizer
from model.tokenizer_config import read_json, tokenizer_from_json

CONFIG, WEIGHTS = "tokenizer.json", "tokenizer.safetensors"


def is_tokenizer_folder(folder: Path) -> bool:
    """Return True if `save_tokenizer` wrote the folder."""
    return (folder / CONFIG).is_file()


def save_tokenizer(folder: Path, tokenizer: AnyTokenizer, about: dict[str, Any]) -> None:
    """Write sizes, weights and `about`, which names the source and licence, to an existing folder."""
    state = {key: tensor.contiguous() for key, tensor in tokenizer.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    text = json.dumps({"tokenizer": asdict(tokenizer.config), "about": about}, indent=1)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_tokenizer_folder(folder: Path) -> AnyTokenizer:
    """Read what `save_tokenizer` wrote, strictly.

    Raises:
        ConfigError: a file is missing or damaged, or sizes and weights do not belong together.
    """
    try:
        config = tokenizer_from_json(read_json(folder / CONFIG)["tokenizer"])
        tokenizer = build_tokenizer(config)
        tokenizer.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{folder} holds no usable tokenizer ({reason}); import or train it again") from error
    return tokenizer.eval()


@torch.no_grad()
def digest(tokenizer: AnyTokenizer, without: Collection[str] = (), dtype: torch.dtype = torch.float32) -> str:
    """SHA-256 of sizes and weights: tokens of one tokenizer mean nothing to another.

    Args:
        without: names of weights that do not count. dtype: what the others are rounded to.
    """
    hasher = hashlib.sha256(json.dumps(asdict(tokenizer.config), sort_keys=True).encode())
    for key, tensor in sorted(tokenizer.state_dict().items()):
        if key not in without:
            hasher.update(key.encode())
            hasher.update(tensor.detach().to(dtype).float().contiguous().cpu().numpy().tobytes())
    return hasher.hexdigest()
