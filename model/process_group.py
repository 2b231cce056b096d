"""Process groups: several processes, one per device, that hold one model together (torch.distributed).

torchrun starts such processes, and so does `fluid serve`; each finds its rank in RANK and WORLD_SIZE. Ranks meet
through the file that GROUP_FILE names, or as torchrun has it, at MASTER_ADDR. CPU tensors travel over gloo, CUDA
tensors over NCCL.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from model.config import ConfigError

GROUP_FILE = "PROCESS_GROUP_FILE"
# Followers of a server wait for hours, and rank 0 of a training run may encode captions for as long. A process that
# ends closes its connections, which the others notice at once.
PATIENCE = timedelta(days=365)


@dataclass(frozen=True)
class Share:
    """One rank's part of a batch: parts are contiguous, and their sizes differ by one at most."""

    rank: int = 0
    size: int = 1

    def part(self, count: int) -> slice:
        """The entries of `count` that belong to this rank."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)


@dataclass(frozen=True)
class Group:
    """This process's place in its group."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh  # one dimension, of all ranks

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def share(self) -> Share:
        return Share(self.rank, self.size)


def started_in_group() -> bool:
    """True if this process was started as a rank of a group, if only of one."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join_group(device: str = "auto") -> Group:
    """Meet the other ranks; a second call returns the same group.

    Args:
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
    Raises:
        ConfigError: there are fewer devices than ranks on this host, or no library for their kind.
    """
    cuda = device != "cpu" and torch.cuda.is_available()
    local, here = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if cuda and torch.cuda.device_count() < max(here, local + 1):
        raise ConfigError(
            f"{max(here, local + 1)} ranks on this host, but {torch.cuda.device_count()} CUDA devices: start as many "
            "ranks as devices, or choose the CPU"
        )
    check_backends(cuda)
    chosen = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        file = os.environ.get(GROUP_FILE)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE,
            init_method=f"file://{file}" if file else "env://",
            rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
        )  # fmt: skip
    size = dist.get_world_size()
    return Group(dist.get_rank(), size, chosen, init_device_mesh(chosen.type, (size,)))


def check_backends(cuda: bool) -> None:
    """Raise ConfigError if this build of torch lacks what ranks communicate over."""
    missing = [
        name
        for name, here in (("gloo", dist.is_gloo_available), ("NCCL", dist.is_nccl_available))
        if (cuda or name == "gloo") and not (dist.is_available() and here())
    ]
    if missing:
        raise ConfigError(
            f"this build of torch has no {' and no '.join(missing)}, so its processes cannot share a model: install "
            "the usual wheel of torch, or use one process per model"
        )


def leave_group() -> None:
    """End the group in this process; nothing without one."""
    if dist.is_initialized():
        dist.destroy_process_group()
