"""Tile sizes of each kernel: one table per kind of chip, looked up by the number of rows. No autotuning at run time.

The number of rows decides the tile. With few rows a product takes as long as reading W, so its N columns are spread
over as many programs as the chip has multiprocessors, and blocks of K are long so that few loads wait for each other.
With many rows tiles grow until each byte read is used often enough, m·n/(m + n) FLOPs a byte, to keep the tensor cores
busy.

The numbers come from counting bytes, registers and shared memory (`python -m fluid_kernels.tools.aot` prints what the
compiler makes of each); none was timed on a device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton


@dataclass(frozen=True)
class Config:
    """Tile of a product: m rows, n columns, k of the inner dimension at a time."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


# (rows up to and including, tile). "hip" has 64 KiB of shared memory where sm_80 has 164 and sm_90 has 228.
_LINEAR: dict[str, tuple[tuple[int, Config], ...]] = {
    "cuda": (
        (16, Config(16, 16, 256, 4, 4)),
        (32, Config(32, 16, 256, 4, 3)),
        (64, Config(64, 32, 128, 4, 4)),
        (256, Config(64, 64, 64, 4, 4)),
        (1024, Config(128, 64, 64, 8, 4)),
        (1 << 31, Config(128, 128, 64, 8, 3)),
    ),
    "hip": (
        (16, Config(16, 16, 256, 4, 2)),
        (32, Config(32, 16, 256, 4, 2)),
        (64, Config(64, 32, 128, 4, 2)),
        (256, Config(64, 64, 64, 4, 2)),
        (1024, Config(128, 64, 64, 8, 2)),
        (1 << 31, Config(128, 128, 64, 8, 2)),
    ),
}
# The interpreter pays per operation on a block, whatever its size: few, large blocks.
_INTERPRETED = Config(64, 64, 64, 4, 1)


def linear_config(backend: str, rows: int, dtype: torch.dtype) -> Config:
    """The tile for a product of `rows` rows; smaller in float32, which has twice the bytes and three products."""
    if backend == "cpu":
        return _INTERPRETED
    config = next(config for most, config in _LINEAR[backend] if rows <= most)
    return replace(config, k=config.k // 2, n=min(config.n, 64)) if dtype == torch.float32 else config


def linear_configs(backend: str, dtype: torch.dtype) -> list[Config]:
    """Every tile in the table, once, for the ahead-of-time compile."""
    return list(dict.fromkeys(linear_config(backend, most, dtype) for most, _ in _LINEAR[backend]))


def backend_of(device: torch.device) -> str:
    """The key of the tables for a device: "cuda" or "hip" on a GPU, "cpu" under the interpreter.

    Raises:
        ValueError: kernels cannot run on this device.
    """
    if device.type == "cuda":
        return "hip" if torch.version.hip else "cuda"
    if not triton.knobs.runtime.interpret:
        raise ValueError(f"Triton kernels need a GPU, not {device}; use the torch path, or TRITON_INTERPRET=1 in tests")
    return "cpu"


def precision(backend: str) -> str:
    """tl.dot's precision of float32 products: three TF32 tensor-core products (together 23 bits) on CUDA."""
    return "tf32x3" if backend == "cuda" else "ieee"


# Per thread. Without this limit ptxas may choose fewer for the persistent kernel, to fit a second block that a
# cooperative launch never brings, and spill.
MOST_REGISTERS = 255

# Tiles of the persistent kernel. n is the smallest that spreads a product's columns over the team; m grows with the
# rows, so that teams stay large.
_PERSISTENT: dict[str, tuple[Config, ...]] = {
    "cuda": (
        Config(16, 16, 128, 4, 3),
        Config(16, 32, 128, 4, 3),
        Config(16, 64, 64, 4, 3),
        Config(32, 64, 64, 8, 3),
        Config(64, 64, 64, 8, 2),  # 128 columns spill
    ),
    "hip": (
        Config(16, 16, 128, 4, 2),
        Config(16, 32, 128, 4, 2),
        Config(16, 64, 128, 4, 2),
        Config(32, 64, 64, 4, 2),
        Config(64, 128, 32, 8, 1),
    ),
}
_PERSISTENT_INTERPRETED = Config(16, 64, 128, 4, 1)


def persistent_config(backend: str, rows: int, guided: int, width: int, processors: int) -> tuple[Config, int]:
    """The tile, and the number of programs in its team, for `rows` rows on a chip of `processors` multiprocessors.

    The first tile whose teams have a program for every n columns; with too many rows for that, the last tile, with the
    largest team that fits. With more tiles than multiprocessors a team is one program, which never waits.
    """
    if backend == "cpu":
        return _PERSISTENT_INTERPRETED, 2
    evaluations = rows * (2 if guided else 1)
    for config in _PERSISTENT[backend]:
        team = processors // -(-evaluations // config.m)
        if team >= width // config.n:
            return config, width // config.n
    return config, max(1, team)


def persistent_configs(backend: str) -> tuple[Config, ...]:
    """Every tile in the table, for the ahead-of-time compile."""
    return _PERSISTENT[backend]
