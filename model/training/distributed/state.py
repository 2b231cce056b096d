"""State of a sharded run on disk (torch.distributed.checkpoint): any number of ranks reads what another has written.

folders.py has the layout.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from model.config import ConfigError
from model.training.distributed.folders import newest, state_folder
from model.training.distributed.losses import StepLosses


def save_sharded(
    state_file: Path, losses: StepLosses, optimizer: torch.optim.Optimizer, average: dict[str, Tensor],
    progress: dict[str, Any],
) -> None:  # fmt: skip
    """Write a state and drop those before it; a kill in the middle leaves the previous one in place."""
    folder = state_folder(state_file) / f"{progress['step']:08d}"
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while it wrote this
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text(json.dumps(progress))
    dist.barrier()
    module, states = get_state_dict(losses, optimizer)
    dcp.save({"losses": module, "optimizer": states, "average": average}, checkpoint_id=folder)
    if dist.get_rank() == 0:
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other)


def load_sharded(
    state_file: Path, losses: StepLosses, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
) -> dict[str, Any] | None:
    """Load the newest complete state in place and return its progress, or return None if there is none.

    Raises:
        ConfigError: it is damaged, or that of other sizes.
    """
    folder = newest(state_file)
    if folder is None:
        return None
    module, states = get_state_dict(losses, optimizer)
    try:
        dcp.load({"losses": module, "optimizer": states, "average": average}, checkpoint_id=folder)
        progress: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    except (dcp.CheckpointException, OSError, ValueError) as error:  # the first is no Exception: `except` must name it
        raise ConfigError(
            f"{folder} is damaged, or holds a run with another preset, optimizer or set of losses "
            f"({_reason(error)}): choose another --out, or remove the folder to start over"
        ) from error
    set_state_dict(losses, optimizer, model_state_dict=module, optim_state_dict=states)
    return progress


def _reason(error: BaseException) -> str:
    """The first line of an error, or of that of the first rank that failed."""
    if isinstance(error, dcp.CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


def load_single(
    state: dict[str, Any], losses: StepLosses, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
) -> None:
    """Load the state that a single process saved: each rank takes its part of every tensor."""
    own = losses.model.state_dict()
    losses.model.load_state_dict({name: _part(value, own[name]) for name, value in state["model"].items()})
    if losses.layout_head is not None:
        own = losses.layout_head.state_dict()
        losses.layout_head.load_state_dict({name: _part(value, own[name]) for name, value in state["layout"].items()})
    for name, value in average.items():
        value.copy_(_part(state["ema"]["shadow"][name], value))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {name: _part(value, parameters[index]) if value.ndim else value for name, value in entry.items()}
        for index, entry in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict({**state["optimizer"], "state": moments})


def _part(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded as `like` is; every rank has it, so nothing is sent."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
