"""Tensors of a file that other code wrote: taken by name, checked by shape, and none may be left over."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoint import CheckpointError


class Foreign:
    """A state that is emptied by name; what is missing, misshapen or left over is an error that says so."""

    def __init__(self, file: Path, state: dict[str, Tensor]):
        self.file = file
        self._state = state
        self._taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._state

    def shape(self, key: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there and have so many dimensions."""
        found = self._find(key).shape
        if len(found) != dims:
            raise CheckpointError(f"{self.file}: {key!r} has shape {tuple(found)}, but {dims} dimensions are expected")
        return tuple(found)

    def count(self, prefix: str) -> int:
        """How many numbered parts, prefix + "0", "1", …, there are; at least one."""
        numbers = {key.removeprefix(prefix).split(".", 1)[0] for key in self._state if key.startswith(prefix)}
        count = next(n for n in range(len(numbers) + 1) if str(n) not in numbers)
        if not count:
            raise CheckpointError(f"{self.file}: no key begins with {prefix + '0'!r}; {self._nature()}")
        return count

    def take(self, key: str, shape: Sequence[int]) -> Tensor:
        """The tensor in this shape; leading dimensions of 1 may be missing or too many."""
        found = self._find(key)
        if _stripped(found.shape) != _stripped(shape):
            raise CheckpointError(f"{self.file}: {key!r} has shape {tuple(found.shape)}, {tuple(shape)} is expected")
        self._taken.add(key)
        return found.reshape(tuple(shape))

    def finish(self, ignore: str = "\0") -> None:
        """Everything has been taken, apart from keys that begin with `ignore`."""
        left = sorted(key for key in self._state.keys() - self._taken if not key.startswith(ignore))
        if left:
            more = f", nor have {len(left) - 1} more" if len(left) > 1 else ""
            raise CheckpointError(f"{self.file}: {left[0]!r} has no place in such a model{more}")

    def _find(self, key: str) -> Tensor:
        if key not in self._state:
            raise CheckpointError(f"{self.file}: key {key!r} is missing; {self._nature()}")
        return self._state[key]

    def _nature(self) -> str:
        keys = sorted(self._state)
        return f"the file has {len(keys)} keys" + (f", the first is {keys[0]!r}" if keys else "")


def read_foreign(file: Path, *sections: str) -> Foreign:
    """Tensors of a .safetensors file, or of a torch file; from the first of `sections` that the latter has.

    Torch files are unpickled with `weights_only`, so that they can hold tensors and nothing that runs.

    Raises:
        CheckpointError: no such file, damaged, or of another kind.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is no file; give the checkpoint itself (.pth, .ckpt or .safetensors)")
    if file.suffix == ".safetensors":
        try:
            return Foreign(file, load_file(file))
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged ({error}); download it again") from error
    try:
        # Training's own arguments lie beside the weights in some files; a Namespace is as harmless as a dictionary.
        with torch.serialization.safe_globals([argparse.Namespace]):
            raw: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file} is damaged or no file of torch.save ({reason}); download it again") from error
    state = next((raw[name] for name in sections if isinstance(raw, dict) and name in raw), raw)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(map(repr, list(raw)[:5])) if isinstance(raw, dict) else type(raw).__name__
        raise CheckpointError(f"{file}: neither {' nor '.join(map(repr, sections))} in it, but {found}")
    return Foreign(file, state)


def _stripped(shape: Sequence[int]) -> tuple[int, ...]:
    """Without leading ones."""
    sizes = tuple(shape)
    while sizes and sizes[0] == 1:
        sizes = sizes[1:]
    return sizes
