"""The cases that `python -m fluid_kernels.tools.aot` compiles: every kernel in every configuration of a GPU.

A case is launched as its wrapper does: bfloat16 weights, 16-byte aligned pointers, a stride of modulation
that is a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from fluid_kernels.configs import RAGGED_WIDEST, Config, linear_configs, precision
from fluid_kernels.ops import (
    add_norm,
    denoise_update,
    gated_residual,
    head_out,
    linear_triton,
    ln_modulate,
    modulation,
    philox_triton,
    token_in,
)

# Of every head that ships or has a preset, and of the benchmark's; tests/kernels/test_configs.py holds them
# against the presets. Those of the backbones beside them.
WIDTHS = (128, 176, 256, 768, 1024, 1280, 1536, 2048, 4096)
BACKBONE_WIDTHS = (96, 160, 224, *WIDTHS)
CHANNELS = (16, 32, 48, 64)  # a token of one latent, of scenes-128, of atlas-128, and of 2 × 2 latents
OTHER_WIDTH = 1024  # where the width is only a loop's trip count
RAGGED_WIDTH = 1000  # no multiple of any k: products mask their last block, as at scenes-128's 224


@dataclass(frozen=True)
class Case:
    """One compilation. arguments: Triton type of each argument that is not a constant, by name."""

    name: str
    kernel: Any
    arguments: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int = 1
    dot: bool = False  # multiplies bfloat16 blocks, so there must be tensor-core instructions
    aligned: tuple[str, ...] = field(default=("mod_stride", "gate_stride"))  # integers known to be multiples of 16


def cases(backend: str) -> Iterator[Case]:
    """All cases for a kind of chip: "cuda" or "hip"."""
    yield from _products(backend)
    for width in WIDTHS:
        yield from _rows(width)
    yield from _rows(OTHER_WIDTH, "fp32")
    for width in BACKBONE_WIDTHS:
        for add, out in ((True, "bf16"), (False, "bf16"), (True, "fp32")):
            yield _add_norm(width, add, out)
    for channels in CHANNELS:
        yield _normal(channels)
        for prediction in ("eps", "v"):
            yield _update(channels, prediction)


def _products(backend: str) -> Iterator[Case]:
    """Every tile that the rule may choose, in both dtypes: float32 multiplies the first step of eps chains."""
    for dtype, type_ in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for c in linear_configs(backend, dtype):
            if c.n <= gated_residual.WIDEST:
                yield _gated_residual(backend, c, type_)
                yield _gated_residual(backend, c, type_, RAGGED_WIDTH)
            linear = {"x_ptr": f"*{type_}", "w_ptr": f"*{type_}", "b_ptr": "*fp32", "y_ptr": f"*{type_}"}
            for activation in linear_triton.ACTIVATIONS if type_ == "bf16" else ("", "silu"):
                yield Case(
                    f"linear {activation or 'plain'} {type_} {_tile(c)}", linear_triton.linear_kernel,
                    {**linear, "n_rows": "i32"}, {**_product(backend, c), "ACTIVATION": activation},
                    c.warps, c.stages, dot=type_ == "bf16",
                )  # fmt: skip
            if c.n <= RAGGED_WIDEST:
                yield Case(
                    f"linear {type_} {_tile(c)} ragged", linear_triton.linear_kernel, {**linear, "n_rows": "i32"},
                    {**_product(backend, c, RAGGED_WIDTH), "ACTIVATION": "silu" if type_ == "fp32" else "gelu_erf"},
                    c.warps, c.stages, dot=type_ == "bf16",
                )  # fmt: skip


def _tile(c: Config) -> str:
    return f"{c.m}x{c.n}x{c.k}/{c.stages}"


def _product(backend: str, c: Config, width: int = OTHER_WIDTH) -> dict[str, Any]:
    return {
        "N": width, "K": width, "BLOCK_M": c.m, "BLOCK_N": c.n, "BLOCK_K": c.k,
        "PRECISION": precision(backend), "UPCAST": False,
    }  # fmt: skip


def _gated_residual(backend: str, c: Config, dtype: str, width: int = OTHER_WIDTH) -> Case:
    return Case(
        f"gated residual {dtype} {_tile(c)}{' ragged' if width == RAGGED_WIDTH else ''}",
        gated_residual.gated_residual_kernel,
        {"u_ptr": f"*{dtype}", "w_ptr": f"*{dtype}", "b_ptr": "*fp32", "h_ptr": "*fp32", "gate_ptr": f"*{dtype}",
         "step_ptr": "*i32", "n_rows": "i32", "gate_stride": "i32"},
        _product(backend, c, width), c.warps, c.stages, dot=dtype == "bf16",
    )  # fmt: skip


def _rows(width: int, dtype: str = "bf16") -> Iterator[Case]:
    """Kernels whose programs hold a whole row. float32: those of the first step of eps chains."""
    suffix = "" if dtype == "bf16" else f" {dtype}"
    block = triton.next_power_of_2(width)
    size: dict[str, Any] = {"W": width, "BLOCK_W": block}
    yield Case(
        f"ln modulate {width}{suffix}", ln_modulate.ln_modulate_kernel,
        {"h_ptr": "*fp32", "weight_ptr": "*fp32", "bias_ptr": "*fp32", "mod_ptr": f"*{dtype}",
         "step_ptr": "*i32", "n_ptr": f"*{dtype}", "n_rows": "i32", "mod_stride": "i32"},
        {**size, "BLOCK_M": 1}, warps=4,
    )  # fmt: skip
    yield Case(
        f"embed {width}{suffix}", modulation.embed_kernel,
        {"time_ptr": "*fp32", "condition_ptr": "*fp32", "entry_ptr": "*i32", "y_ptr": f"*{dtype}",
         "n_evaluations": "i32", "n_times": "i32"},
        size, warps=4,
    )  # fmt: skip
    for channels in CHANNELS if width == OTHER_WIDTH else CHANNELS[:1]:
        if dtype == "bf16":
            yield Case(
                f"token in {channels}->{width}", token_in.token_in_kernel,
                {"x_ptr": "*fp32", "w_ptr": "*fp32", "b_ptr": "*fp32", "uncond_ptr": "*i32", "step_ptr": "*i32",
                 "h_ptr": "*fp32"},
                {**size, "C": channels}, warps=4,
            )  # fmt: skip
        yield Case(
            f"head out {width}->{2 * channels}{suffix}", head_out.head_out_kernel,
            {"h_ptr": "*fp32", "mod_ptr": f"*{dtype}", "step_ptr": "*i32", "w_ptr": "*fp32", "b_ptr": "*fp32",
             "out_ptr": "*fp32", "n_rows": "i32", "mod_stride": "i32"},
            {**size, "N_OUT": 2 * channels, "BLOCK_O": 8}, warps=4,
        )  # fmt: skip


def _add_norm(width: int, add: bool, out: str) -> Case:
    return Case(
        f"{'add norm' if add else 'norm'} {width} {out}", add_norm.add_norm_kernel,
        {"x_ptr": "*fp32", "delta_ptr": "*bf16" if add else "*fp32", "weight_ptr": "*fp32", "bias_ptr": "*fp32",
         "n_ptr": f"*{out}"},
        {"W": width, "BLOCK_W": triton.next_power_of_2(width), "ADD": add}, warps=add_norm.warps(width),
    )  # fmt: skip


def _normal(channels: int) -> Case:
    return Case(
        f"normal {channels}", philox_triton._normal_kernel,
        {"seed_ptr": "*i64", "position_ptr": "*i64", "step_ptr": "*i64", "out_ptr": "*fp32", "purpose": "i32",
         "n_tokens": "i32"},
        {"C": channels, "BLOCK_M": 64, "BLOCK_C": triton.next_power_of_2(channels)},
        warps=4,
    )  # fmt: skip


ROW_SETTINGS = {
    "offset_ptr": "*i32", "start_ptr": "*i32", "guidance_ptr": "*fp32", "temperature_ptr": "*fp32", "seed_ptr": "*i64",
    "position_ptr": "*i32", "table_ptr": "*fp32", "timestep_ptr": "*i32",
}  # fmt: skip


def _update(channels: int, prediction: str) -> Case:
    outputs = channels * (2 if prediction == "eps" else 1)
    return Case(
        f"update {prediction} {channels}", denoise_update.denoise_update_kernel,
        {"out_ptr": "*fp32", "x_ptr": "*fp32", "step_ptr": "*i32", "uncond_ptr": "*i32", **ROW_SETTINGS,
         "n_rows": "i32", "clamp": "fp32"},
        {"C": channels, "N_OUT": outputs, "BLOCK_M": 16, "BLOCK_C": triton.next_power_of_2(channels),
         "EPS": prediction == "eps"},
        warps=4,
    )  # fmt: skip
