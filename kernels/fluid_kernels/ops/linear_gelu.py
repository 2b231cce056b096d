"""The first layer of an MLP with GELU behind it, as a module that takes the place of torch.nn.Linear and GELU.

    y = gelu(x Wᵀ + b)        products in bfloat16; sums in float32; y in bfloat16

Both forms of GELU: by erf (MAR's weights) and by tanh (ours). cuBLASLt has an epilogue for the tanh form only.

With few rows GELU is in our product's epilogue, and y is rounded once. From LIBRARY_ROWS rows on a GPU's library
multiplies; x Wᵀ + b is rounded, and a GELU of its own reads and writes it once more, 4 bytes a value.

Sources: Hendrycks & Gimpel 2016 (arXiv 1606.08415); the product is linear_triton.py.

Shapes: x (…, K), weight (N, K), bias (N,), y (…, N). Bytes: those of the product, and of GELU where it is alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluid_kernels.ops.linear_triton import by_library, linear

# Microseconds of our product with GELU, and of cuBLAS followed by GELU, on an H200 (docs/log.md, 2026-11-29):
#     rows            MAR-B          MAR-H         369M          3.1B
#     512 or 640      10.8  11.2     25.7  22.5    12.1  12.5    32.8  30.9     3 % less by the library, two lose
#     32,768, 40,960  554   468      1233  1115    623   637     2251  2066     8 % less, one loses by 2 %
# both as geometric means. Sizes between the two have not been measured: the border is a guess.
LIBRARY_ROWS = 4096


class LinearGelu(nn.Module):
    """See the module's formula. activation: "gelu_tanh" or "gelu_erf"."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: str):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight, self.bias = weight.detach().to(dtype).contiguous(), bias.detach().float()
        self.rounded_bias = self.bias.to(dtype)  # the library's products have one dtype
        self.dtype, self.activation = dtype, activation

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out) in the layer's dtype."""
        rows = x.to(self.dtype).flatten(0, -2).contiguous()
        if by_library(self.weight, len(rows), LIBRARY_ROWS):
            y = F.linear(rows, self.weight, self.rounded_bias)
            # In place: y is the largest tensor of a pass.
            torch.ops.aten.gelu_(y, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        else:
            y = torch.empty(len(rows), self.out_features, dtype=self.dtype, device=x.device)
            linear(rows, self.weight, self.bias, y, self.activation)
        return y.unflatten(0, x.shape[:-1])
