"""The optimisers that a recipe can name: "adamw", and "muon" for the matrices of the blocks with AdamW for the rest.

On atlas-128 the loss falls more than twice as fast per step with Muon, which takes a fifth more time (docs/log.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

OPTIMIZERS = ("adamw", "muon")
BETAS = (0.9, 0.95)  # of AdamW
MOMENTUM = 0.95  # of Muon


class BatchedMuon(torch.optim.Muon):
    """torch's Muon with one product for all matrices of a shape, in place of one for each.

    On a GPU, starting the kernels of a step of atlas-128, some 30 for each of 70 matrices, takes longer than running
    them; here there are as many for each of 11 shapes. The matrices must not be sharded; rates are scaled as by
    adjust_lr_fn="match_rms_adamw", whatever is given.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one step of all matrices that have a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes[matrix.shape].append(matrix)
            for matrices in shapes.values():
                self._step(matrices, group)

    def _step(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Do one step of matrices of one shape."""
        lr, momentum = float(group["lr"]), group["momentum"]
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]  # all of them, as `step` chose
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, momenta, momentum) if group["nesterov"] else momenta
        updates = orthogonal(torch.stack(ahead), group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
        rate = lr * 0.2 * max(matrices[0].shape) ** 0.5  # "match_rms_adamw"
        torch._foreach_add_(matrices, list(updates.to(matrices[0].dtype).unbind()), alpha=-rate)


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """(K, A, B) matrices, each near the closest orthogonal one, bfloat16: Newton and Schulz's iteration as Muon has it.

    Args:
        coefficients: of the quintic polynomial. eps: least norm that a matrix is divided by.
    """
    a, b, c = coefficients
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


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
        kind: torch's Muon, or BatchedMuon.
    """

    def __init__(
        self, matrices: Sequence[Tensor], others: list[dict[str, Any]], lr: float, weight_decay: float,
        kind: type[torch.optim.Muon] = torch.optim.Muon,
    ):  # fmt: skip
        self._muon = kind(matrices, lr=lr, weight_decay=weight_decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
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
    batched = all(p.is_cuda and not isinstance(p, DTensor) for p in hidden)
    kind = BatchedMuon if batched else torch.optim.Muon
    return MuonWithAdamW(hidden, groups, lr, weight_decay, kind)
