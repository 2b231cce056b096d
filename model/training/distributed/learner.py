"""Fully sharded training (FSDP2): each rank keeps a part of every parameter, its average and its optimiser's state."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from model.networks.diffusion_head import DiffusionHead
from model.training.distributed.losses import StepLosses
from model.training.distributed.state import load_sharded, load_single, save_sharded
from model.training.trainer import Ema, Learner, load_state, own_weight_decay

TOLD = ("history", "started_from", "made_of")  # by the run: what JSON can hold


def shard(losses: StepLosses, mesh: DeviceMesh) -> None:
    """Shard the parameters in place; every rank must hold the same ones.

    Gathered together are a block, the aligner, the diffusion head, and all the rest. The keys and values of a block's
    text are computed ahead of the blocks, so their projection is gathered by itself. A block takes and returns the
    residual stream: FSDP gathers its parameters again when the gradient of the one arrives, and drops them after the
    other's.
    """
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing here is in place
    backbone = losses.model.backbone
    for block in backbone.blocks:
        fully_shard(block.cross_attn.kv, mesh=mesh)  # type: ignore[union-attr,arg-type]
        fully_shard(block, mesh=mesh)
    fully_shard(backbone.aligner, mesh=mesh)
    if isinstance(losses.model.head, DiffusionHead):
        fully_shard(losses.model.head, mesh=mesh)
    fully_shard(losses, mesh=mesh)


class ShardedEma(Ema):
    """The average of sharded parameters, sharded as they are."""

    def copy_to(self, module: nn.Module) -> None:
        """Load the averaged values into `module`, which is not sharded; every rank must call it."""
        module.load_state_dict(
            {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in self.shadow.items()}
        )


@dataclass
class ShardedLearner(Learner):
    """A learner whose module is part of `losses`, which is sharded. Every rank calls every method."""

    losses: StepLosses = field(kw_only=True)

    def clip_gradients(self, clip: float) -> Tensor:
        """As Learner.clip_gradients, of the norm over all ranks."""
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), clip)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(
        self, loss: Tensor, rate: float, clip: float, meanwhile: Callable[[], None] | None = None
    ) -> None:  # fmt: skip
        """Do one optimiser step; then rank 0's clock counts on every rank, since learning rates follow it."""
        super().update(loss, rate, clip, meanwhile)
        annealing = -1.0 if self.clock.annealing is None else self.clock.annealing
        told = torch.tensor([self.clock.seconds, annealing], dtype=torch.float64)
        dist.broadcast(told, 0)
        self.clock.seconds, annealing = told.tolist()
        self.clock.annealing = None if annealing < 0 else annealing

    def mean(self, loss: Tensor) -> float:
        """The mean of the ranks' losses."""
        total = loss.detach().float().cpu()
        dist.all_reduce(total)
        return float(total) / dist.get_world_size()

    def agree(self, flag: bool) -> bool:
        """Rank 0's flag."""
        told = torch.tensor([flag])
        dist.broadcast(told, 0)
        return bool(told)

    def save(self, path: Path, **more: Any) -> None:
        """Write the state to a folder beside `path`: each rank its part."""
        progress = {
            "step": self.clock.step, "seconds": self.clock.seconds, "annealing": self.clock.annealing,
            "updates": self.ema.updates, **{key: more[key] for key in TOLD},
        }  # fmt: skip
        save_sharded(path, self.losses, self.optimizer, self.ema.shadow, progress)
        if dist.get_rank() == 0:
            path.unlink(missing_ok=True)  # that of a single process, which this run has left behind

    def resume(self, path: Path) -> dict[str, Any] | None:
        """Load what any number of ranks saved, or else what a single process did; None if there is neither."""
        with own_weight_decay(self.optimizer):
            progress = load_sharded(path, self.losses, self.optimizer, self.ema.shadow)
            if progress is None:
                state = load_state(path)
                if state is None:
                    return None
                load_single(state, self.losses, self.optimizer, self.ema.shadow)
                progress = {**state, "updates": state["ema"]["updates"]}
        self.clock.step, self.clock.seconds = progress["step"], progress["seconds"]
        self.clock.annealing, self.ema.updates = progress.get("annealing"), progress["updates"]
        head = self.losses.layout_head
        layout = None if head is None else head.state_dict()
        return {key: progress.get(key) for key in TOLD} | {"layout": layout}
