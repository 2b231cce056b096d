"""The categorical head: logits of a discrete token over the codebook, from the backbone's z.

As in the discrete systems of Fluid (arXiv 2410.13863), the output matrix is the table that embeds the tokens; imported
families have a matrix of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig


class CategoricalHead(nn.Module):
    """logits = z Eᵀ + b; the table E belongs to the backbone, or is `weight`.

    own: width of z, for a head with its own table; 0: the backbone's.
    """

    def __init__(self, config: ModelConfig, own: int = 0):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.codebook))
        self.weight = nn.Parameter(0.02 * torch.randn(config.codebook, own)) if own else None

    def forward(self, z: Tensor, table: Tensor) -> Tensor:
        """z (M, D), table (K, D) -> (M, K) float32."""
        return F.linear(z, table, self.bias).float()
