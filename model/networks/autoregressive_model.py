"""The trainable model, a backbone and a token head, and the loss that trains both at once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import FluidConfig, ModelConfig
from model.diffusion import Schedule, add_noise, training_loss
from model.flow import add_flow_noise, flow_loss
from model.networks.categorical_head import CategoricalHead
from model.networks.causal import CausalBackbone
from model.networks.condition import Condition
from model.networks.diffusion_head import DiffusionHead
from model.networks.transformer import Backbone, init_weights


class AutoregressiveModel(nn.Module):
    """A backbone that computes a conditioning vector z per token, and a head that samples tokens given z.

    Families differ in the backbone: backbone(tokens, known, condition, most_known) -> z (B, N, D); the last argument
    is optional. A causal one looks at the tokens before a position only.
    """

    def __init__(self, config: ModelConfig, backbone: nn.Module, own_table: int = 0):
        """own_table: the categorical head has its own table, of this width, and the weights are imported."""
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head: DiffusionHead | CategoricalHead = (
            CategoricalHead(config, own_table) if config.categorical else DiffusionHead(config)
        )
        if own_table:  # nothing to start from: a checkpoint's weights follow
            return
        init_weights(self)
        if isinstance(self.head, DiffusionHead):
            self.head.zero_init()

    @property
    def diffusion_head(self) -> DiffusionHead:
        """The head of a model of continuous tokens."""
        assert isinstance(self.head, DiffusionHead)
        return self.head

    @property
    def table(self) -> Tensor:
        """(K, D) the categorical head's table."""
        if isinstance(self.head, CategoricalHead) and self.head.weight is not None:
            return self.head.weight
        table: Tensor = self.backbone.token_in.weight  # type: ignore[union-attr,assignment]
        return table

    def loss(
        self,
        schedule: Schedule,
        tokens: Tensor,
        masked: Tensor,
        condition: Condition,
        index: Tensor | None,
        noise: Tensor | None,
    ) -> Tensor:
        """Loss averaged over masked tokens; with a causal backbone all are masked: each is predicted from those before.

        Args:
            tokens: (B, N, C) clean, or (B, N) int64 if discrete.
            masked: (B, N) bool, M of them True in the whole batch.
            condition: of the B images.
            index: (R, M) chain index of each of R noise draws per masked token; for a flow, its times. None: discrete.
            noise: (R, M, C), unit variance. None: discrete.
        Returns:
            () the mean. Several draws per token are cheap, because the head is small next to the backbone.
        """
        return self.token_loss(schedule, self.backbone(tokens, ~masked, condition), tokens, masked, index, noise)

    def token_loss(
        self, schedule: Schedule, z: Tensor, tokens: Tensor, masked: Tensor | tuple[Tensor, ...],
        index: Tensor | None, noise: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Compute `loss` from a z (B, N, D) that is already known: of discrete tokens the cross-entropy, in nats.

        masked: as `loss` has it, or the indices of its True entries, (M,) each: then no device is waited for.
        """
        if isinstance(self.head, CategoricalHead):
            return F.cross_entropy(self.head(z[masked], self.table), tokens[masked])
        assert index is not None and noise is not None
        draws = len(index)
        z, x0 = z[masked].repeat(draws, 1), tokens[masked].repeat(draws, 1)  # (R·M, D), (R·M, C)
        index, noise = index.flatten(), noise.flatten(0, 1)
        if self.config.prediction == "flow":
            out = self.head(add_flow_noise(x0, index, noise), index, z).float()
            return flow_loss(out, x0, noise).mean()
        x = add_noise(schedule, x0, index, noise)
        out = self.head(x, schedule.timesteps[index], z).float()
        return training_loss(schedule, out, x0, x, index, noise, self.config.prediction).mean()


class Fluid(AutoregressiveModel):
    """Autoregressive model conditioned on text (arXiv 2410.13863): any of the paper's four systems."""

    backbone: Backbone | CausalBackbone
    config: FluidConfig

    def __init__(self, config: FluidConfig):
        super().__init__(config, CausalBackbone(config) if config.causal else Backbone(config))
