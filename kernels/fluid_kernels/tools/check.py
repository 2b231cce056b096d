"""Check each operation on a device against its definition: every tile of the table, odd shapes, both dtypes.

    python -m fluid_kernels.tools.check [--device cuda] [--quick]

Prints a line per check; exits with 1 if an error is too large. Without a GPU: TRITON_INTERPRET=1 in the environment and
--device cpu --quick. `make gpu-first` compares the loops that are built from these operations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fluid_kernels.configs import RAGGED_WIDEST, Config, backend_of, linear_config, linear_configs
from fluid_kernels.ops.add_norm import add_norm, add_norm_ref
from fluid_kernels.ops.denoise_update import denoise_update, denoise_update_ref
from fluid_kernels.ops.gated_residual import WIDEST, gated_residual, gated_residual_ref
from fluid_kernels.ops.head_out import head_out, head_out_ref
from fluid_kernels.ops.linear import linear_ref
from fluid_kernels.ops.linear_gelu import LIBRARY_ROWS, LinearGelu
from fluid_kernels.ops.linear_triton import linear
from fluid_kernels.ops.ln_modulate import ln_modulate, ln_modulate_ref
from fluid_kernels.ops.modulation import modulation, modulation_ref
from fluid_kernels.ops.token_in import token_in, token_in_ref
from fluid_kernels.philox import STEP, normal_ref

# Largest error over largest value: float32 sums in a different order, or bfloat16 rounded once at the end.
MOST = {torch.float32: 1e-4, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Check:
    """A comparison; `apart` draws the inputs, runs the operation and its definition, and returns the relative error.

    Nothing is on the device before: benchmarks/gpu lists all checks in a process that then forks.
    """

    name: str
    apart: Callable[[], float]
    most: float


class Draw:
    """Source of normal numbers on the device, the same in every run."""

    def __init__(self, device: str):
        self.device, self.generator = device, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=self.generator)).to(self.device)


def checks(device: str, quick: bool = False) -> Iterator[Check]:
    """All checks; quick: one tile and small shapes, for the interpreter."""
    draw, backend = Draw(device), backend_of(torch.device(device))
    for dtype in (torch.float32, torch.bfloat16):
        most = MOST[dtype]
        tiles = [linear_config(backend, 1, 96, dtype)] if quick else linear_configs(backend, dtype)
        for width in (96,) if quick else (1024, 1000):
            about = f"{width} {str(dtype).removeprefix('torch.')}"
            for tile in tiles if width % 64 == 0 else [tile for tile in tiles if tile.n <= RAGGED_WIDEST]:
                for rows in (3,) if quick else (1, tile.m, 3 * tile.m - 1):
                    name = f"{about} rows {rows} tile {tile.m}x{tile.n}x{tile.k}"
                    shape = rows, width, dtype
                    # GELU belongs to backbones, whose kernels are for bfloat16 only.
                    for activation in ("silu",) if dtype == torch.float32 else ("silu", "gelu_erf", "gelu_tanh"):
                        work = partial(_linear, draw, *shape, tile, activation)
                        yield Check(f"linear {activation} {name}", work, most)
                    if tile.n <= WIDEST:
                        yield Check(f"gated residual {name}", partial(_gated, draw, *shape, tile), most)
            for activation in () if dtype == torch.float32 else ("gelu_erf", "gelu_tanh"):
                rows = 5 if quick else LIBRARY_ROWS + 1
                work = partial(_linear_gelu, draw, rows, width, dtype, activation)
                yield Check(f"layer with {activation} {about} rows {rows}", work, most)
            for rows in (5,) if quick else (1, 33, 700):
                yield Check(f"add norm {about} rows {rows}", partial(_add_norm, draw, rows, width, dtype), most)
                yield Check(f"ln modulate {about} rows {rows}", partial(_ln, draw, rows, width, dtype), most)
                yield Check(f"modulation {about} rows {rows}", partial(_mod, draw, rows, width, dtype), most)
                yield Check(f"head out {about} rows {rows}", partial(_out, draw, rows, width, dtype), 1e-4)
    for rows, channels in ((5, 6),) if quick else ((1, 16), (33, 6), (700, 16), (700, 64)):
        yield Check(f"token in {channels} rows {rows}", partial(_token_in, draw, rows, channels), 1e-4)
        for prediction in ("eps", "v"):
            about = f"{prediction} {channels} rows {rows}"
            yield Check(f"update {about}", partial(_update, draw, rows, channels, prediction), 1e-4)


def _apart(found: Tensor, exact: Tensor) -> float:
    return ((found.float() - exact).abs().max() / exact.abs().max()).item()


def _step(device: str, step: int, first: int) -> Tensor:
    return torch.tensor([step, step, first], dtype=torch.int32, device=device)


def _linear(draw: Draw, rows: int, width: int, dtype: torch.dtype, tile: Config, activation: str) -> float:
    x, weight, bias = draw(rows, width).to(dtype), draw(width, width, scale=width**-0.5).to(dtype), draw(width)
    y = torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)
    linear(x, weight, bias, y, activation, tile)
    return _apart(y, linear_ref(x, weight, bias, activation))


def _linear_gelu(draw: Draw, rows: int, width: int, dtype: torch.dtype, activation: str) -> float:
    """The backbone's layer, which leaves the product to the library on a GPU."""
    x, weight, bias = draw(rows, width).to(dtype), draw(width, width, scale=width**-0.5).to(dtype), draw(width)
    return _apart(LinearGelu(weight, bias, dtype, activation)(x), linear_ref(x, weight, bias, activation))


def _add_norm(draw: Draw, rows: int, width: int, dtype: torch.dtype) -> float:
    x, delta, weight, bias = draw(rows, width) + 3, draw(rows, width).to(dtype), draw(width), draw(width)
    n = torch.empty(rows, width, dtype=dtype, device=draw.device)
    stream, exact = add_norm_ref(x, delta, weight, bias)
    add_norm(x, delta, weight, bias, n)
    return max(_apart(x, stream), _apart(n, exact))


def _gated(draw: Draw, rows: int, width: int, dtype: torch.dtype, tile: Config) -> float:
    u, weight = draw(rows, width).to(dtype), draw(width, width, scale=width**-0.5).to(dtype)
    bias, h, mod = draw(width), draw(rows, width), draw(2, rows, 3 * width).to(dtype)
    gate = mod[:, :, 2 * h.shape[1] :]
    exact = gated_residual_ref(h, u, weight, bias, gate[1])
    gated_residual(h, u, weight, bias, gate, _step(h.device.type, 4, 3), tile)
    return _apart(h, exact)


def _ln(draw: Draw, rows: int, width: int, dtype: torch.dtype) -> float:
    h, mod = draw(rows, width) + 3, draw(2, rows, 3 * width).to(dtype)
    weight, bias, n = draw(width), draw(width), torch.empty(rows, width, dtype=dtype, device=draw.device)
    ln_modulate(h, weight, bias, mod, _step(draw.device, 4, 3), n)
    return _apart(n, ln_modulate_ref(h, weight, bias, mod[1, :, :width], mod[1, :, width : 2 * width]))


def _mod(draw: Draw, rows: int, width: int, dtype: torch.dtype) -> float:
    times, condition, steps = draw(9, width), draw(rows, width), 3
    weight, bias = draw(2 * width, width, scale=width**-0.5).to(dtype), draw(2 * width)
    entry = torch.arange(rows, dtype=torch.int32, device=draw.device) % 5
    y = torch.empty(steps, rows, width, dtype=dtype, device=draw.device)
    mod = torch.empty(steps, rows, 2 * width, dtype=dtype, device=draw.device)
    modulation(times, condition, entry, weight, bias, y, mod, steps)
    return _apart(mod, modulation_ref(times, condition, entry.long(), weight, bias, steps))


def _out(draw: Draw, rows: int, width: int, dtype: torch.dtype) -> float:
    h, mod = draw(rows, width) + 3, draw(2, rows, 2 * width).to(dtype)
    weight, bias, out = draw(32, width, scale=width**-0.5), draw(32), draw(rows, 32)
    head_out(h, mod, _step(draw.device, 4, 3), weight, bias, out)
    return _apart(out, head_out_ref(h, mod[1, :, :width], mod[1, :, width:], weight, bias))


def _token_in(draw: Draw, rows: int, channels: int) -> float:
    x, weight, bias, h = draw(rows, channels), draw(1000, channels), draw(1000), draw(rows + rows // 2, 1000)
    uncond = _uncond(draw.device, rows)
    token_in(x, weight.T.contiguous(), bias, uncond, _step(draw.device, 4, 3), h)
    return _apart(h, token_in_ref(x, weight, bias, uncond, len(h)))


def _uncond(device: str, rows: int) -> Tensor:
    """(M,) the unconditional half of every second row, else −1."""
    row = torch.arange(rows, dtype=torch.int32, device=device)
    return torch.where(row % 2 == 1, rows + row // 2, -1).int()


def _update(draw: Draw, rows: int, channels: int, prediction: str) -> float:
    device, row = draw.device, torch.arange(rows, device=draw.device)
    x, uncond = draw(rows, channels), _uncond(draw.device, rows)
    out = draw(rows + rows // 2, channels * (2 if prediction == "eps" else 1))
    table = draw(12, 7).abs() + 0.1
    timesteps = torch.arange(12, dtype=torch.int32, device=device) * 83
    offset, start = (row % 2 * 5).int(), (3 + row % 2).int()
    guidance, temperature, seed = draw(rows) + 3, draw(rows).abs(), row * 0x1_2345_6789
    entry = (offset + 3).long()
    noise = normal_ref(seed, STEP, row, timesteps[entry].long(), channels)
    exact = denoise_update_ref(out, uncond, guidance, x, table[entry], noise, temperature, prediction, 2.0)
    denoise_update(
        out, x, _step(device, 3, 0), uncond, offset, start, guidance, temperature, seed, row.int(), table, timesteps,
        prediction, 2.0,
    )  # fmt: skip
    return _apart(x, exact)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks, print them, and return the number to exit with."""
    parser = argparse.ArgumentParser(prog="python -m fluid_kernels.tools.check", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="one tile and small shapes, for the interpreter")
    options = parser.parse_args(argv)
    far = 0
    for check in checks(options.device, options.quick):
        apart = check.apart()
        fails = not apart <= check.most  # nan counts as too far
        far += fails
        print(f"{check.name:<58}{apart:>10.1e}{'  TOO FAR' if fails else ''}", flush=True)
    print(f"{far} too far from their definitions")
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())
