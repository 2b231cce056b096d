"""The trainable whole: backbone + diffusion head, and the loss that trains both at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import FluidConfig
from model.diffusion import Schedule, add_noise, training_loss
from model.head import DiffusionHead
from model.transformer import Backbone, TextContext, count_parameters, init_weights


class Fluid(nn.Module):
    """Random-order autoregressive model over continuous tokens (arXiv 2410.13863)."""

    def __init__(self, config: FluidConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head = DiffusionHead(config)
        init_weights(self)
        self.head.zero_init()

    def loss(
        self,
        schedule: Schedule,
        tokens: Tensor,
        masked: Tensor,
        text: TextContext,
        index: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Diffusion loss averaged over masked tokens.

        Args:
            tokens: (B, N, C) clean. masked: (B, N) bool.
            index: (R, M) chain index of each of R noise draws for each of the M masked tokens of the batch.
            noise: (R, M, C).
        Several draws per token cost little, because the head is small next to the backbone that made z.
        """
        z = self.backbone(tokens, ~masked, text)  # (B, N, D)
        draws = len(index)
        z, x0 = z[masked].repeat(draws, 1), tokens[masked].repeat(draws, 1)  # (R·M, D), (R·M, C)
        index, noise = index.flatten(), noise.flatten(0, 1)
        x = add_noise(schedule, x0, index, noise)
        out = self.head(x, schedule.timesteps[index], z).float()
        return training_loss(schedule, out, x0, x, index, noise, self.config.prediction).mean()


def parameter_count(config: FluidConfig) -> int:
    """Trainable parameters of a configuration, without allocating them."""
    with torch.device("meta"):
        return count_parameters(Fluid(config))
