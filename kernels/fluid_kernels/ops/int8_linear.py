"""A linear layer for inference with weights of 8 bits: half the memory of bfloat16, and half the bytes a call.

    W ≈ scale ⊙ q        q int8 in [-127, 127], one scale per output
    y = act(x qᵀ ⊙ scale + b)        x and y in bfloat16, sums in float32

It is for models that do not fit into memory otherwise. With few rows a product takes as long as its weights take to
arrive: on a CPU 0.8 of packed bfloat16's time at 1 and 2 rows, which a causal model has that decodes one image with
guidance. With more rows the integers are widened in each call: 1.9 times the time at 8 rows, 1.1 times at 256.

The error of a weight is at most half a step of about 1/127 of its output's largest one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluid_kernels.ops.linear import activate

LEVELS = 127
PART = 64  # outputs that are quantised at once: whole matrices in float32 would leave gaps that malloc seldom reuses
GROUP = 16  # inputs
FEW_ROWS = 8  # up to which torch's CPU operator is faster than widening


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each output's weights by its own scale: (out, in) -> int8 (out, in), scales (out,) bfloat16.

    The scale is rounded before the weights are divided by it, so that its rounding adds no error.
    """
    quantized = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), dtype=torch.bfloat16, device=weight.device)
    for begin in range(0, len(weight), PART):
        part = weight[begin : begin + PART].float()
        one = (part.abs().amax(1).clamp_min(1e-30) / LEVELS).bfloat16()
        scale[begin : begin + PART] = one
        quantized[begin : begin + PART] = (part / one.float()[:, None]).round_().clamp_(-LEVELS, LEVELS)
    return quantized, scale


class Int8Linear(nn.Module):
    """See the module's formula."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = ""):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        quantized, scale = quantize_rows(weight.detach())
        self.register_buffer("weight", quantized)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().bfloat16())
        # The operator reads whole groups of inputs: with others it returns garbage or crashes (torch 2.13).
        self.streams = self.in_features % GROUP == 0 and hasattr(torch, "_weight_int8pack_mm")

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out) in bfloat16."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        if self.streams and len(rows) <= FEW_ROWS and rows.device.type == "cpu":
            y = torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.scale)
        else:  # integers up to 256 are exact in bfloat16
            y = F.linear(rows, self.weight.bfloat16()) * self.scale
        y = y if self.bias is None else y + self.bias
        return activate(y, self.activation).reshape(*x.shape[:-1], self.out_features)
