"""Weights written by other code: each tensor is taken by name and checked by shape, and none may be left over."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoint import CheckpointError


class ForeignWeights:
    """Tensors of one file, taken one by one. A missing, misshapen or leftover tensor raises an error that names it."""

    def __init__(self, file: Path, state: dict[str, Tensor]):
        self.file = file
        self._state = state
        self._taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._state

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return dict(self._state)

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._state)

    def peek(self, key: str) -> Tensor:
        """A tensor as it is, not taken."""
        return self._find(key)

    def shape(self, key: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            CheckpointError: it is missing, or does not have `dims` dimensions.
        """
        found = self._find(key).shape
        if len(found) != dims:
            raise CheckpointError(f"{self.file}: {key!r} has shape {tuple(found)}, but {dims} dimensions are expected")
        return tuple(found)

    def count(self, prefix: str) -> int:
        """Number of parts named prefix + "0", prefix + "1", and so on.

        Raises:
            CheckpointError: there are none.
        """
        numbers = {key.removeprefix(prefix).split(".", 1)[0] for key in self._state if key.startswith(prefix)}
        count = next(n for n in range(len(numbers) + 1) if str(n) not in numbers)
        if not count:
            raise CheckpointError(f"{self.file}: no key begins with {prefix + '0'!r}; {self._summary()}")
        return count

    def take(self, key: str, shape: Sequence[int]) -> Tensor:
        """Take a tensor, reshaped to `shape` if it differs only in leading dimensions of 1.

        Raises:
            CheckpointError: it is missing, or has another shape.
        """
        found = self._find(key)
        if _stripped(found.shape) != _stripped(shape):
            raise CheckpointError(f"{self.file}: {key!r} has shape {tuple(found.shape)}, {tuple(shape)} is expected")
        self._taken.add(key)
        return found.reshape(tuple(shape))

    def finish(self, ignore: str | tuple[str, ...] = "\0") -> None:
        """Check that every tensor was taken, except those whose key begins with `ignore`, or one of them.

        Raises:
            CheckpointError: names the first that was not.
        """
        left = sorted(key for key in self._state.keys() - self._taken if not key.startswith(ignore))
        if left:
            more = f", nor have {len(left) - 1} more" if len(left) > 1 else ""
            raise CheckpointError(f"{self.file}: {left[0]!r} has no place in such a model{more}")

    def _find(self, key: str) -> Tensor:
        if key not in self._state:
            raise CheckpointError(f"{self.file}: key {key!r} is missing; {self._summary()}")
        return self._state[key]

    def _summary(self) -> str:
        keys = sorted(self._state)
        return f"the file has {len(keys)} keys" + (f", the first is {keys[0]!r}" if keys else "")


def read_foreign_weights(file: Path, *sections: str) -> ForeignWeights:
    """Read a .safetensors file, or the first of `sections` that a torch file has.

    Torch files are unpickled with `weights_only`, so that code in them cannot run.

    Raises:
        CheckpointError: the file is missing, damaged or of the wrong kind.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is not a file; give the checkpoint itself (.pth, .ckpt or .safetensors)")
    if file.suffix == ".safetensors":
        try:
            return ForeignWeights(file, load_file(file))
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged ({error}); download it again") from error
    raw = _load_torch(file)
    state = _section(raw, sections)
    if state is None:
        found = ", ".join(map(repr, list(raw)[:5])) if isinstance(raw, dict) else type(raw).__name__
        raise CheckpointError(f"{file}: neither {' nor '.join(map(repr, sections))} in it, but {found}")
    return ForeignWeights(file, state)


def _load_torch(file: Path) -> Any:
    try:
        # Some files hold the training arguments beside the weights; a Namespace is as harmless as a dictionary.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Files of torch before 1.6 are no archives, and cannot be mapped.
            mapped = zipfile.is_zipfile(file)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file} is damaged or not a torch.save file ({reason}); download it again") from error


def _section(raw: Any, sections: Sequence[str]) -> dict[str, Tensor] | None:
    """The first of `sections` that there is, else all of it; None if that is not tensors by name."""
    state = next((raw[name] for name in sections if isinstance(raw, dict) and name in raw), raw)
    return state if isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values()) else None


def tensor_names(file: Path, *sections: str) -> frozenset[str]:
    """Names of the tensors in a file, without reading their values; of a torch file, those of the first section that
    it has. Empty if it holds something else.

    Raises:
        CheckpointError: the file is damaged, or not one of tensors.
    """
    if file.suffix == ".safetensors":
        with opened(file) as stored:
            return frozenset(stored.keys())
    return frozenset(_section(_load_torch(file), sections) or ())


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, open for reading single tensors.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        with safe_open(file, "pt") as stored:
            yield stored
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged ({error}); download it again") from error


def _stripped(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape without leading dimensions of 1."""
    sizes = tuple(shape)
    while sizes and sizes[0] == 1:
        sizes = sizes[1:]
    return sizes
