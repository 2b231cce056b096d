"""A linear layer for inference: weights packed once, in the dtype that the device multiplies fastest.

    y = act(x Wᵀ + b)        x in any float dtype, products in `dtype`, sums in float32, y in `dtype`

On a CPU that multiplies bfloat16 natively, oneDNN keeps W in its own blocked layout, which torch.nn.Linear must rebuild
at every call: measured 1.3 to 1.6 times as fast at up to 128 rows (docs/log.md). The operators are those that
torch.compile's CPU backend emits; where they are missing, or the CPU has no AVX-512 and oneDNN rejects bfloat16, plain
torch does the same.

Bytes: W is read once a call, out·in·2 in bfloat16; FLOPs: 2·rows·out·in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Blocked layouts are chosen for a number of rows; the one for 128 is within a few percent of the best at 1 to 1024
# (the one for 1 row loses 20 % from 64 rows on).
PACKED_FOR_ROWS = 128

# BLAS sums a float32 product of fewer rows than this, for each thread, in another order. Its last bits would depend on
# what else is decoded, and rounding to bfloat16 behind it can make another image of that (docs/log.md).
ROWS_OF_ONE_ORDER = 4
MOST_ADDED = 63  # more threads than 16 get fewer rows: a product of one row must not become one of hundreds

_FUSED = {"": ("none", ""), "silu": ("swish", ""), "gelu_tanh": ("gelu", "tanh"), "gelu_erf": ("gelu", "none")}


def activate(x: Tensor, activation: str) -> Tensor:
    """The activations that PackedLinear knows: "", "silu", "gelu_tanh", "gelu_erf"."""
    if not activation:
        return x
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def linear_ref(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "") -> Tensor:
    """The definition, float32: (…, in) -> (…, out)."""
    return activate(F.linear(x.float(), weight.float(), None if bias is None else bias.float()), activation)


def in_one_order(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """product(x) of (M, in) rows, with rows added and dropped again on a CPU, so that M does not change the others.

    That holds for the libraries it was measured with (docs/log.md); none of them promises it. Other shapes of x, whole
    images, have rows enough.
    """
    if x.dim() != 2 or x.device.type != "cpu" or x.dtype != torch.float32:
        return product(x)
    missing = -len(x) % min(ROWS_OF_ONE_ORDER * torch.get_num_threads(), MOST_ADDED + 1)
    return product(F.pad(x, (0, 0, 0, missing)))[: len(x)] if missing else product(x)


class PackedLinear(nn.Module):
    """See the module's formula."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: str = ""):
        super().__init__()
        if activation not in _FUSED:
            raise ValueError(f"activation {activation!r} is not one of {', '.join(map(repr, _FUSED))}")
        self.out_features, self.in_features = weight.shape
        self.dtype, self.activation = dtype, activation
        self.bias = None if bias is None else bias.detach().to(dtype)
        weight = weight.detach().to(dtype).contiguous()
        self.packed = dtype == torch.bfloat16 and weight.device.type == "cpu" and _onednn_packs()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS) if self.packed else weight

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out) in the layer's dtype."""
        x = x.to(self.dtype)
        if not self.packed:
            return activate(in_one_order(partial(F.linear, weight=self.weight, bias=self.bias), x), self.activation)
        attribute, algorithm = _FUSED[self.activation]
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, attribute, [], algorithm)
        return y


def _onednn_packs() -> bool:
    """True where oneDNN packs and multiplies bfloat16; elsewhere its operators raise."""
    operators = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and all(hasattr(operators, name) for name in ("_linear_pointwise", "_is_mkldnn_bf16_supported"))
        and bool(operators._is_mkldnn_bf16_supported())
    )


def native_bfloat16() -> bool:
    """True where this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX); elsewhere float32 is faster.

    oneDNN must agree: it runs the products, and may be limited to fewer instructions than the CPU has.
    """
    return _onednn_packs() and any(
        bool(getattr(torch.cpu, name, bool)()) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
