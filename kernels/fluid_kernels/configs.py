"""Tile sizes of each kernel: one table per kind of chip, and a rule that picks from it. No autotuning at run time.

A product's tile is chosen by its rows and its columns, as the one with the least time by count: programs run in waves
of as many as the chip has multiprocessors, and a program takes as long as its FLOPs at the peak or its reads of x and W
from the L2 cache, whichever is slower. Few rows or few columns therefore get small tiles, whose programs fill the chip;
many of both get large ones, which use each byte m·n/(m + n) times.

The numbers come from counting bytes, registers and shared memory (`python -m fluid_kernels.tools.aot` prints what the
compiler makes of each). On an H200 the tiles that the rule chooses are 1.7 % slower than the fastest of the table, as a
geometric mean of 47 shapes, and 12 % at worst. Without the tile 32 × 32 × 128 it would be 0.9 %, at those shapes.
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


# "hip" has 64 KiB of shared memory where sm_80 has 164 and sm_90 has 228.
_LINEAR: dict[str, tuple[Config, ...]] = {
    "cuda": (
        Config(16, 16, 256, 4, 4),
        Config(16, 32, 256, 4, 3),
        Config(32, 16, 256, 4, 3),
        Config(32, 32, 128, 4, 4),
        Config(64, 32, 128, 4, 4),
        Config(64, 64, 64, 4, 4),
        Config(128, 64, 64, 8, 4),
        Config(128, 128, 64, 8, 3),
        Config(128, 256, 64, 8, 3),
    ),
    "hip": (
        Config(16, 16, 256, 4, 2),
        Config(32, 16, 256, 4, 2),
        Config(32, 32, 128, 4, 2),
        Config(64, 32, 128, 4, 2),
        Config(64, 64, 64, 4, 2),
        Config(128, 64, 64, 8, 2),
        Config(128, 128, 64, 8, 2),
    ),
}


@dataclass(frozen=True)
class Chip:
    """What tiles are chosen by: multiprocessors, and what one of them can do, by the datasheet."""

    processors: int
    flops_per_s: float  # dense bfloat16
    bytes_per_s: float  # from the L2 cache, all reading at once; H100: measured by others as 5.5 TB/s in all


# H100 SXM and H200; MI300X, whose last cache is the Infinity Cache.
CHIPS = {"cuda": Chip(132, 989e12 / 132, 5.5e12 / 132), "hip": Chip(304, 1307e12 / 304, 17.2e12 / 304)}
# The most columns of a tile whose product masks its last block of the inner dimension: 256 spilled 80 bytes on sm_80.
RAGGED_WIDEST = 128
# The interpreter pays per operation on a block, whatever its size: few, large blocks.
_INTERPRETED = Config(64, 64, 64, 4, 1)


def linear_config(backend: str, rows: int, columns: int, dtype: torch.dtype, widest: int = 256) -> Config:
    """The tile for a product of `rows` rows and `columns` columns; of equals the largest.

    widest: the most columns of a tile, for an epilogue that needs registers of its own.
    """
    if backend == "cpu":
        return _INTERPRETED
    fitting = [c for c in linear_configs(backend, dtype) if c.n <= widest]
    return min(fitting, key=lambda c: (product_seconds(backend, c, rows, columns, dtype), -c.m * c.n))


def linear_configs(backend: str, dtype: torch.dtype) -> list[Config]:
    """Every tile that `linear_config` may return; smaller in float32, with twice the bytes and three products."""
    if dtype != torch.float32:
        return list(_LINEAR[backend])
    return list(dict.fromkeys(replace(c, k=c.k // 2, n=min(c.n, 64)) for c in _LINEAR[backend]))


def product_seconds(backend: str, tile: Config, rows: int, columns: int, dtype: torch.dtype) -> float:
    """Time by count of a product with this tile, for each value of the inner dimension."""
    chip, wide = CHIPS[backend], dtype == torch.float32
    programs = -(-rows // tile.m) * -(-columns // tile.n)
    flops, read = 2 * tile.m * tile.n * (6 if wide else 1), (tile.m + tile.n) * dtype.itemsize
    return -(-programs // chip.processors) * max(flops / chip.flops_per_s, read / chip.bytes_per_s)


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
