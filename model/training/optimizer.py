"""The optimisers that a recipe can name: "adamw", and "muon" for the matrices of the blocks with AdamW for the rest.

On atlas-128 the loss falls more than twice as fast per step with Muon, which takes a fifth more time (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

OPTIMIZERS = ("adamw", "muon")
BETAS = (0.9, 0.95)  # of AdamW
MOMENTUM = 0.95  # of Muon


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for some matrices and AdamW for all other parameters, as one optimiser.

    Muon replaces the momentum of a matrix by the nearest orthogonal one, so that all directions are learnt at the same
    pace (Jordan et al. 2024, kellerjordan.github.io/posts/muon). Its steps are scaled to the size of AdamW's, so that
    one learning rate and one weight decay serve both (arXiv 2502.16982, section 2.2). It is for matrices between hidden
    states; the layers that read and write tokens, tables and vectors keep AdamW.

    Both are torch's own and share this one's groups and state, which are therefore saved, loaded and sharded as those
    of any optimiser are.

    Args:
        matrices: parameters of two dimensions, for Muon.
        others: groups of parameters for AdamW.
        weight_decay: of the matrices; the other groups say their own.
    """

    def __init__(self, matrices: Sequence[Tensor], others: list[dict[str, Any]], lr: float, weight_decay: float):
        self._muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=BETAS, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one step of both."""
        for part, groups in ((self._muon, self.param_groups[:1]), (self._adamw, self.param_groups[1:])):
            part.param_groups, part.state = groups, self.state  # loading a state replaces these objects
            part.step()


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: weight decay for matrices, none for vectors (biases, norms, tables of one row)."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors: list[Tensor] = [p for p in module.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def make_optimizer(
    name: str, model: nn.Module, more: Sequence[nn.Module], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return the optimiser of that name for a model.

    Args:
        name: one of OPTIMIZERS.
        more: modules that are trained along and thrown away, always by AdamW.
    """
    groups = [group for module in (model, *more) for group in decay_groups(module, weight_decay)]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)
    hidden = [p for path, p in model.named_parameters() if "blocks" in path.split(".") and p.ndim == 2]
    chosen = set(map(id, hidden))
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
    return MuonWithAdamW(hidden, groups, lr, weight_decay)
