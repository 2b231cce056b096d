"""The first layer of an MLP with GELU in its epilogue, as a module that takes the place of torch.nn.Linear and GELU.

    y = gelu(x Wᵀ + b)        products in bfloat16; sums, bias and GELU in float32; y in bfloat16

Both forms of GELU: by erf (MAR's weights) and by tanh (ours). cuBLASLt has an epilogue for the tanh form only.

Sources: Hendrycks & Gimpel 2016 (arXiv 1606.08415); the product is linear_triton.py.

Shapes: x (…, K), weight (N, K), bias (N,), y (…, N). Bytes: those of the product. A separate GELU reads and writes y
once more, 4 bytes a value; at MAR-B's 3,072 columns that is a quarter of the time of a product at 600 TFLOP/s.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fluid_kernels.ops.linear_triton import linear


class LinearGelu(nn.Module):
    """See the module's formula. activation: "gelu_tanh" or "gelu_erf"."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: str):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight, self.bias = weight.detach().to(dtype).contiguous(), bias.detach().float()
        self.dtype, self.activation = dtype, activation

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out) in the layer's dtype."""
        rows = x.to(self.dtype).flatten(0, -2).contiguous()
        y = torch.empty(len(rows), self.out_features, dtype=self.dtype, device=x.device)
        linear(rows, self.weight, self.bias, y, self.activation)
        return y.unflatten(0, x.shape[:-1])
