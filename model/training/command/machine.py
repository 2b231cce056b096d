"""What a machine lacks: a compiler, or memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fluid_kernels.allocation import is_out_of_memory
from model.config import ConfigError


def can_compile(device: torch.device) -> bool:
    """Try torch.compile on a small function; if it fails, print one line with the reason and a remedy.

    It needs a C++ compiler and Python's headers, which torch does not bring along.
    """
    try:
        torch.compile(_small)(torch.ones(64, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        print(
            f"torch.compile does not work here ({reason}): training without it, about a third slower. Install a C++ "
            "compiler and Python's headers (g++, python3-dev), or set compile = false"
        )
        return False
    return True


def _small(x: torch.Tensor) -> torch.Tensor:
    return (2 * x + 1).sin()


@contextmanager
def within_memory(remedy: str) -> Iterator[None]:
    """Turn a failed allocation into a ConfigError with this remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(f"out of memory: {remedy}, or use a device with more memory") from error
