"""A step's losses as a module, so that FSDP gathers the parameters around its forward pass."""

from __future__ import annotations

from torch import Tensor, nn

from model.diffusion import Schedule
from model.networks.autoregressive_model import Fluid
from model.training.auxiliary.layout_loss import LayoutHead


class StepLosses(nn.Module):
    """The model and, for recipes that have one, the head of the auxiliary layout loss."""

    def __init__(self, model: Fluid, layout_head: LayoutHead | None, layout_weight: float):
        super().__init__()
        self.model, self.layout_head, self.layout_weight = model, layout_head, layout_weight

    def forward(
        self, schedule: Schedule, tokens: Tensor, masked: Tensor, places: tuple[Tensor, ...], states: Tensor,
        mask: Tensor, index: Tensor | None, noise: Tensor | None, cells: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The tokens' loss, and the objective, which adds any auxiliary layout loss.

        Args:
            tokens: (B, N, C), or (B, N) int64 if discrete.
            masked: (B, N) bool, M of them True. places: the two indices of those, (M,) each.
            states: (B, L, E) and mask (B, L) of the captions.
            index: (R, M), and noise (R, M, C), as `AutoregressiveModel.loss` has them.
            cells: (B, N, 2) classes of what covers each token, or None without a layout loss.
        """
        text = self.model.backbone.encode_text(states, mask)
        z = self.model.backbone(tokens, ~masked, text)  # (B, N, D)
        loss = self.model.token_loss(schedule, z, tokens, places, index, noise)
        if self.layout_head is None or cells is None:
            return loss, loss
        return loss, loss + self.layout_weight * self.layout_head.loss(z[places], cells[places])
