"""The packed linear layer, also on a CPU that cannot pack bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fluid_kernels.ops import linear
from fluid_kernels.ops.linear import (
    MOST_ADDED,
    ROWS_OF_ONE_ORDER,
    PackedLinear,
    in_one_order,
    linear_ref,
    native_bfloat16,
)
from tests.other_cpus import python_without_avx512

PRODUCTS = """
import torch
from fluid_kernels.ops.linear import PackedLinear, linear_ref, native_bfloat16

assert not native_bfloat16()
generator = torch.Generator().manual_seed(0)
weight, bias = torch.randn(48, 40, generator=generator) / 7, torch.randn(48, generator=generator)
for rows in (1, 3, 64):
    x = torch.randn(rows, 40, generator=generator)
    for activation in ("", "silu", "gelu_tanh", "gelu_erf"):
        layer = PackedLinear(weight, bias, torch.bfloat16, activation)
        assert not layer.packed
        torch.testing.assert_close(layer(x).float(), linear_ref(x, weight, bias, activation), rtol=0.02, atol=0.03)
"""


def test_bfloat16_products_without_avx512() -> None:
    """oneDNN used to be asked to pack bfloat16 on every CPU, but raises on one without AVX-512."""
    done = python_without_avx512("-c", PRODUCTS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("packs", [True, False])
def test_native_means_that_torch_and_onednn_agree(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cpu reads the CPU's flags, even where oneDNN may not use those instructions and would emulate them."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(linear, "_onednn_packs", lambda: packs)
    assert native_bfloat16() == packs


def test_packed_and_plain_layers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU that cannot pack, the same layer is plain torch, and correct up to one rounding."""
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(32, 64, generator=generator) / 8, torch.randn(5, 64, generator=generator)
    here = PackedLinear(weight, None, torch.bfloat16)
    monkeypatch.setattr(linear, "_onednn_packs", lambda: False)
    plain = PackedLinear(weight, None, torch.bfloat16)
    assert not plain.packed
    torch.testing.assert_close(plain(x), here(x), rtol=0.01, atol=0.01)
    torch.testing.assert_close(plain(x).float(), linear_ref(x, weight, None), rtol=0.02, atol=0.03)


@pytest.mark.parametrize("rows", [1, 3, 4, 13, 64])
def test_a_product_has_rows_for_every_thread(rows: int) -> None:
    """A seed gave another image alone than in a batch, with bfloat16 (13 dB between them): BLAS sums products of fewer
    rows in another order, and the head samples one or two tokens of an image in a step."""
    seen = []

    def product(x: Tensor) -> Tensor:
        seen.append(len(x))
        return 2 * x

    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows))
    assert torch.equal(in_one_order(product, x), 2 * x)
    assert seen[0] % min(ROWS_OF_ONE_ORDER * torch.get_num_threads(), MOST_ADDED + 1) == 0
    assert in_one_order(product, x.double()).dtype == torch.float64 and seen[1] == rows, "for float32 alone"
