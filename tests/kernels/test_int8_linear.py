"""Weights of 8 bits: the error of a weight, and both ways of multiplying them."""

from __future__ import annotations

import pytest
import torch

from fluid_kernels.ops.int8_linear import FEW_ROWS, LEVELS, PART, Int8Linear, quantize_rows
from fluid_kernels.ops.linear import linear_ref


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 64)[:, None]
    weight[5] = 0
    quantized, scale = quantize_rows(weight)
    assert quantized.dtype == torch.int8 and int(quantized.abs().max()) == LEVELS
    step = scale.float()[:, None]
    assert ((weight - quantized * step).abs() <= 0.5001 * step).all() and not quantized[5].any()


def test_parts_of_a_matrix_are_quantised_as_the_whole() -> None:
    """Whole matrices in float32 beside it left gaps in the heap: 331 M values took 1.6 to 1.9 GB, now 0.65 GB."""
    weight = torch.randn(2 * PART + 2, 32, generator=torch.Generator().manual_seed(0))
    quantized, scale = quantize_rows(weight)
    whole = (weight.abs().amax(1) / LEVELS).bfloat16()
    assert torch.equal(scale, whole)
    assert torch.equal(quantized, (weight / whole.float()[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8))


@pytest.mark.parametrize("inputs", [128, 100, 72])  # torch's operator crashes where a group of 16 is not whole
@pytest.mark.parametrize("activation", ["", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(1,), (FEW_ROWS,), (FEW_ROWS + 1,), (3, 5), (2, 1, 2)])
def test_few_rows_and_many_are_the_product_of_the_quantised_weights(
    shape: tuple[int, ...], activation: str, inputs: int
) -> None:
    """Few rows go through torch's operator, more through widened weights: both round inputs and outputs only."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(160, inputs, generator=generator) / 11, torch.randn(160, generator=generator)
    x = torch.randn(*shape, inputs, generator=generator)
    layer = Int8Linear(weight, bias, activation)
    expected = linear_ref(x.bfloat16(), layer.weight * layer.scale[:, None].float(), layer.bias, activation)
    y = layer(x)
    assert y.shape == (*shape, 160) and y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.03)
    assert (y.float() - linear_ref(x, weight, bias, activation)).abs().mean() < 0.02
