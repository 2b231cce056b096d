"""The rule that chooses tiles, and the shapes that the ahead-of-time compile must know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fluid_kernels.configs import (
    CHIPS,
    RAGGED_WIDEST,
    Config,
    linear_config,
    linear_configs,
    product_seconds,
)  # fmt: skip
from fluid_kernels.ops import linear_gelu, modulation
from fluid_kernels.ops.linear_triton import by_library
from fluid_kernels.tools.aot_cases import BACKBONE_WIDTHS, CHANNELS, WIDTHS, cases
from model.presets import MAR_PRESETS, PRESETS
from tests.kernels.ops.test_triton_ops import drawn

BF16, F32 = torch.bfloat16, torch.float32
# What rows alone chose before: (rows up to and including, tile).
BY_ROWS = (
    (16, Config(16, 16, 256, 4, 4)), (32, Config(32, 16, 256, 4, 3)), (64, Config(64, 32, 128, 4, 4)),
    (256, Config(64, 64, 64, 4, 4)), (1024, Config(128, 64, 64, 8, 4)), (1 << 31, Config(128, 128, 64, 8, 3)),
)  # fmt: skip


@pytest.mark.parametrize(("width", "least"), [(1024, 120), (1280, 80), (1536, 96)])
def test_products_of_the_loop_fill_the_chip(width: int, least: int) -> None:
    """64 to 512 evaluations of MAR-B's head ran 32 to 64 programs on 132 multiprocessors."""
    for evaluations in (32, 64, 128, 256, 512, 1024, 2048):
        c = linear_config("cuda", evaluations, width, BF16)
        assert -(-evaluations // c.m) * -(-width // c.n) >= least, (evaluations, c)


@pytest.mark.parametrize("columns", [768, 1024, 3072, 5120, 20480])
def test_the_rule_is_never_worse_by_count_than_rows_alone(columns: int) -> None:
    for rows in range(1, 5000, 37):
        old = next(c for most, c in BY_ROWS if rows <= most)
        new = linear_config("cuda", rows, columns, BF16)
        ours, theirs = (product_seconds("cuda", c, rows, columns, BF16) for c in (new, old))
        assert ours <= theirs
    assert linear_config("cuda", 41_000, 3072, BF16) == Config(128, 256, 64, 8, 3)


@pytest.mark.parametrize("backend", CHIPS)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_every_tile_that_the_rules_choose_is_compiled_ahead(backend: str, dtype: torch.dtype) -> None:
    compiled = {case.name for case in cases(backend)}
    short = "bf16" if dtype == BF16 else "fp32"
    for columns in (224, 1000, 1024, 4096, 20480):
        for rows in (1, 7, 64, 130, 448, 3584, 41_000):
            c = linear_config(backend, rows, columns, dtype)
            assert c in linear_configs(backend, dtype)
            assert f"linear silu {short} {c.m}x{c.n}x{c.k}/{c.stages}" in compiled
            ragged = linear_config(backend, rows, columns, dtype, RAGGED_WIDEST)
            assert f"linear {short} {ragged.m}x{ragged.n}x{ragged.k}/{ragged.stages} ragged" in compiled


def test_every_width_of_a_preset_is_compiled_ahead() -> None:
    """All but the presets of tests and rehearsals, which are narrower than any packed layer."""
    for name, config in {**PRESETS, **MAR_PRESETS}.items():
        if name != "tiny":
            assert config.width in BACKBONE_WIDTHS, name
        if name != "tiny" and not config.categorical:  # whose head is one product
            assert config.head_width in WIDTHS, name
            assert config.channels in CHANNELS, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 2e-5), (BF16, 1.6e-2)])
def test_the_librarys_modulation_equals_ours(dtype: torch.dtype, tolerance: float) -> None:
    y, weight, bias = drawn(0, 40, 96).to(dtype), drawn(1, 70, 96, scale=0.1).to(dtype), drawn(2, 70)
    one, other = (torch.empty(40, 70, dtype=dtype) for _ in range(2))
    modulation.product(y, weight, bias, one, library=False)
    modulation.product(y, weight, bias, other, library=True)
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("least", [modulation.LIBRARY_ROWS, linear_gelu.LIBRARY_ROWS])
def test_many_rows_on_a_gpu_are_the_librarys(least: int) -> None:
    """But not in float32, nor on a CPU, which has no library of a GPU."""
    on_gpu = cast(Tensor, SimpleNamespace(device=torch.device("cuda"), dtype=BF16))
    assert by_library(on_gpu, least, least) and not by_library(on_gpu, least - 1, least)
    assert not by_library(cast(Tensor, SimpleNamespace(device=torch.device("cuda"), dtype=F32)), least, least)
    assert not by_library(torch.zeros(1, dtype=BF16), least, least)
