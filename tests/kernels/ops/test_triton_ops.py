"""Each fused operation against its definition, interpreted, over regular and odd shapes.

The interpreter truncates where a device rounds to bfloat16, hence the tolerance of two units in the last place.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from fluid_kernels.configs import Config
from fluid_kernels.head_loop import HeadWeights
from fluid_kernels.ops.denoise_update import denoise_update, denoise_update_ref
from fluid_kernels.ops.gated_residual import gated_residual, gated_residual_ref
from fluid_kernels.ops.head_out import head_out, head_out_ref
from fluid_kernels.ops.linear import linear_ref
from fluid_kernels.ops.linear_triton import linear
from fluid_kernels.ops.ln_modulate import ln_modulate, ln_modulate_ref
from fluid_kernels.ops.modulation import modulation, modulation_ref, stack_modulation
from fluid_kernels.ops.token_in import token_in, token_in_ref
from fluid_kernels.philox import STEP, normal_ref
from tests.kernels import test_head_loop as small

DTYPES = [(torch.float32, 2e-5), (torch.bfloat16, 1.6e-2)]
SHAPES = [(1, 64), (5, 123), (16, 256), (33, 96), (2, 384)]  # evaluations, width


def drawn(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step_at(step: int, first: int) -> Tensor:
    return torch.tensor([step, 0, first], dtype=torch.int32)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_ln_modulate(rows: int, width: int, dtype: torch.dtype, tolerance: float) -> None:
    """The modulation is laid out as in the loop: a block's part of a wider row, in the slot of the current step."""
    h, weight, bias = drawn(0, rows, width) + 3, drawn(1, width), drawn(2, width)
    mod = drawn(3, 3, rows, 4 * width).to(dtype)
    n = torch.empty(rows, width, dtype=dtype)
    ln_modulate(h, weight, bias, mod[:, :, width:], step_at(7, 5), n)
    expected = ln_modulate_ref(h, weight, bias, mod[2, :, width : 2 * width], mod[2, :, 2 * width : 3 * width])
    torch.testing.assert_close(n.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("activation", ["", "silu"])
@pytest.mark.parametrize(("rows", "k", "n"), [(1, 64, 64), (5, 123, 77), (70, 96, 192), (300, 64, 40)])
def test_linear(rows: int, k: int, n: int, activation: str, dtype: torch.dtype, tolerance: float) -> None:
    x, weight, bias = drawn(0, rows, k).to(dtype), drawn(1, n, k, scale=k**-0.5).to(dtype), drawn(2, n)
    y = torch.empty(rows, n, dtype=dtype)
    linear(x, weight, bias, y, activation)
    torch.testing.assert_close(y.float(), linear_ref(x, weight, bias, activation), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_gated_residual(rows: int, width: int, dtype: torch.dtype, tolerance: float) -> None:
    h, u = drawn(0, rows, width), drawn(1, rows, width).to(dtype)
    weight, bias, mod = (
        drawn(2, width, width, scale=width**-0.5).to(dtype),
        drawn(3, width),
        drawn(4, 2, rows, 3 * width),
    )
    mod = mod.to(dtype)
    expected = gated_residual_ref(h, u, weight, bias, mod[1, :, 2 * width :])
    gated_residual(h, u, weight, bias, mod[:, :, 2 * width :], step_at(4, 3))
    torch.testing.assert_close(h, expected, rtol=2e-5, atol=2e-5)


@given(
    rows=st.integers(1, 70), k=st.integers(1, 80), n=st.integers(1, 80),
    m=st.sampled_from([16, 32, 64]), block=st.sampled_from([16, 32]),
)  # fmt: skip
@settings(max_examples=25)
def test_linear_of_any_shape_in_any_tile(rows: int, k: int, n: int, m: int, block: int) -> None:
    """The tail of every tile is masked: memory behind the end of y is unchanged."""
    x, weight, bias = drawn(0, rows, k), drawn(1, n, k), drawn(2, n)
    guarded = torch.full((rows + 1, n), 7.0)
    linear(x, weight, bias, guarded[:rows], "silu", Config(m, block, block, 4, 1))
    torch.testing.assert_close(guarded[:rows], linear_ref(x, weight, bias, "silu"), rtol=1e-4, atol=1e-4)
    assert (guarded[rows] == 7).all()


def test_shapes_and_dtypes_that_do_not_fit_are_rejected() -> None:
    x, weight, bias, y = drawn(0, 4, 8), drawn(1, 6, 8), drawn(2, 6), drawn(3, 4, 6)
    step, mod = step_at(0, 0), drawn(4, 1, 4, 24)
    with pytest.raises(ValueError, match=r"y \(4, 5\) do not fit"):
        linear(x, weight, bias, y[:, :5], "")
    with pytest.raises(ValueError, match="one dtype"):
        linear(x, weight.bfloat16(), bias, y, "")
    with pytest.raises(ValueError, match="contiguous"):
        linear(drawn(0, 8, 4).T, weight, bias, y, "")
    with pytest.raises(ValueError, match="not one of"):
        linear(x, weight, bias, y, "gelu")
    with pytest.raises(ValueError, match="do not fit"):
        ln_modulate(x, drawn(1, 8), drawn(2, 8), mod[:, :3], step, x.clone())
    with pytest.raises(ValueError, match="rows of one buffer"):
        ln_modulate(x, drawn(1, 8), drawn(2, 8), drawn(0, 1, 4, 64)[:, :, ::2], step, x.clone())
    with pytest.raises(ValueError, match="do not fit"):
        gated_residual(x.bfloat16(), x, drawn(1, 8, 8), drawn(2, 8), mod, step)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("steps", "evaluations", "width"), [(1, 1, 64), (3, 5, 123), (4, 20, 96)])
def test_modulation_of_many_steps(
    steps: int, evaluations: int, width: int, dtype: torch.dtype, tolerance: float
) -> None:
    times, condition = drawn(0, 9, width), drawn(1, evaluations, width)
    weight, bias = drawn(2, 2 * width, width, scale=width**-0.5).to(dtype), drawn(3, 2 * width)
    entry = torch.arange(evaluations, dtype=torch.int32) % (9 - steps)
    y = torch.empty(steps + 1, evaluations, width, dtype=dtype)
    mod = torch.full((steps + 1, evaluations, 2 * width), 7.0, dtype=dtype)
    modulation(times, condition, entry, weight, bias, y, mod, steps)
    expected = modulation_ref(times, condition, entry.long(), weight, bias, steps)
    torch.testing.assert_close(mod[:steps].float(), expected, rtol=tolerance, atol=tolerance)
    assert (mod[steps] == 7).all()


def test_stacked_modulation_adds_one_to_scales() -> None:
    """The same numbers as each block's own layer, with 1 + scale in the second third."""
    weights = HeadWeights.from_head(small.make_head("v", width=24, depth=2))
    weight, bias = stack_modulation(weights, torch.float32)
    y = drawn(0, 3, 24)
    found = linear_ref(y, weight, bias)
    for i in range(2):
        expected = linear_ref(y, weights.modulation[i], weights.modulation_bias[i])
        expected[:, 24:48] += 1
        torch.testing.assert_close(found[:, 72 * i : 72 * (i + 1)], expected)
    final = linear_ref(y, weights.final_modulation, weights.final_modulation_bias)
    final[:, 24:] += 1
    torch.testing.assert_close(found[:, 144:], final)


@pytest.mark.parametrize(("rows", "channels", "width"), [(1, 16, 64), (5, 6, 123), (9, 64, 96)])
def test_token_in(rows: int, channels: int, width: int) -> None:
    """It also writes the unconditional halves, and makes the next step the current one."""
    x, weight, bias = drawn(0, rows, channels), drawn(1, width, channels), drawn(2, width)
    uncond = torch.tensor([rows + i // 2 if i % 2 == 0 else -1 for i in range(rows)], dtype=torch.int32)
    h, step = torch.zeros(rows + (rows + 1) // 2, width), torch.tensor([9, 4, 2], dtype=torch.int32)
    token_in(x, weight.T.contiguous(), bias, uncond, step, h)
    torch.testing.assert_close(h, token_in_ref(x, weight, bias, uncond, len(h)), rtol=1e-5, atol=1e-4)
    assert step.tolist() == [4, 4, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "outputs", "width"), [(1, 32, 64), (5, 7, 123), (3, 128, 96)])
def test_head_out(rows: int, outputs: int, width: int, dtype: torch.dtype) -> None:
    h, mod = drawn(0, rows, width) + 3, drawn(1, 2, rows, 5 * width).to(dtype)
    weight, bias, out = drawn(2, outputs, width), drawn(3, outputs), torch.empty(rows, outputs)
    head_out(h, mod[:, :, 3 * width :], step_at(6, 5), weight, bias, out)
    expected = head_out_ref(h, mod[1, :, 3 * width : 4 * width], mod[1, :, 4 * width :], weight, bias)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("prediction", "clamp"), [("eps", 0.0), ("eps", 1.5), ("v", 0.0), ("v", 1.5), ("flow", 1.5)])
@pytest.mark.parametrize(("rows", "channels"), [(1, 16), (5, 6), (18, 16), (3, 48), (3, 64)])
def test_denoise_update(rows: int, channels: int, prediction: str, clamp: float) -> None:
    """Rows of two chains, some guided, some not begun; the definition takes the noise of the CPU's Philox."""
    step, generator = 3, torch.Generator().manual_seed(1)
    out = drawn(0, rows + rows // 2, channels * (2 if prediction == "eps" else 1))
    uncond = torch.tensor([rows + i // 2 if i % 2 else -1 for i in range(rows)], dtype=torch.int32)
    table, timesteps = torch.rand(12, 7, generator=generator) + 0.1, torch.arange(12, dtype=torch.int32) * 83
    offset, start = (torch.arange(rows, dtype=torch.int32) % 2) * 5, 2 + torch.arange(rows, dtype=torch.int32) % 3
    start[0] = 3
    guidance, temperature = (1 + torch.rand(rows, generator=generator) for _ in range(2))
    seed, position = torch.randint(0, 1 << 62, (rows,), generator=generator), torch.arange(rows)
    x = drawn(2, rows, channels)
    found, at = x.clone(), torch.tensor([step, 99, 0], dtype=torch.int32)
    denoise_update(
        out, found, at, uncond, offset, start, guidance, temperature, seed, position.int(), table, timesteps,
        prediction, clamp,
    )  # fmt: skip
    entry = (offset + step).long()
    noise = normal_ref(seed, STEP, position, timesteps[entry].long(), channels)
    expected = denoise_update_ref(out, uncond, guidance, x, table[entry], noise, temperature, prediction, clamp)
    expected = torch.where((start >= step)[:, None], expected, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert at.tolist() == [3, 2, 0]
