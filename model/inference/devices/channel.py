"""Messages from rank 0 to its followers: a header in JSON, then tensors; nothing is unpickled."""

from __future__ import annotations

import json
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from model.process_group import Group

T = TypeVar("T")
PACKET = 4096  # bytes that are sent in any case: a header with room for conditions of some hundred rows
_LENGTH = 8


class GroupBroken(RuntimeError):
    """A rank has ended or failed, so that the ranks no longer compute the same step: only a new group can help."""


@dataclass(frozen=True)
class Message:
    """What followers are to do, with which tensors."""

    kind: str
    fields: dict[str, Any]
    tensors: list[Tensor]
    freed: list[int]  # numbers of what rank 0 no longer holds


class Channel:
    """The messages of one group. On rank 0 any thread may send; each operation is finished before the next."""

    def __init__(self, group: Group):
        self.group = group
        self._lock = threading.RLock()
        self._numbers = count(1)
        self._freed: deque[int] = deque()

    def number(self) -> int:
        """A new number for something that rank 0 and its followers hold."""
        return next(self._numbers)

    def tie(self, owner: object, number: int) -> None:
        """Let followers drop `number` when rank 0 has dropped `owner`."""
        weakref.finalize(owner, self._freed.append, number)

    def lead(self, kind: str, tensors: Sequence[Tensor], work: Callable[[], T], **fields: Any) -> T:
        """Tell followers what to do, and do the same here.

        Raises:
            GroupBroken: it failed on any rank.
        """
        with self._lock:
            try:
                self._send(kind, tensors, fields)
                return work()
            except (RuntimeError, MemoryError) as error:
                raise GroupBroken(f"a step on {self.group.size} devices failed ({error})") from error

    def _send(self, kind: str, tensors: Sequence[Tensor], fields: dict[str, Any]) -> None:
        freed = [self._freed.popleft() for _ in range(len(self._freed))]
        forms = [(str(t.dtype).removeprefix("torch."), list(t.shape), t.device.type) for t in tensors]
        header = json.dumps([kind, fields, forms, freed]).encode()
        packet = torch.zeros(max(PACKET, _LENGTH + len(header)), dtype=torch.uint8)
        framed = len(header).to_bytes(_LENGTH, "little") + header
        packet[: len(framed)] = torch.frombuffer(bytearray(framed), dtype=torch.uint8)
        dist.broadcast(packet[:PACKET], 0)
        if len(packet) > PACKET:
            dist.broadcast(packet[PACKET:], 0)
        for tensor in tensors:
            if tensor.numel():
                dist.broadcast(tensor.contiguous().flatten().view(torch.uint8), 0)

    def receive(self) -> Message:
        """Wait for the next message. Raises RuntimeError if rank 0 has ended."""
        packet = torch.zeros(PACKET, dtype=torch.uint8)
        dist.broadcast(packet, 0)
        length = int.from_bytes(bytes(packet[:_LENGTH].tolist()), "little")
        if _LENGTH + length > PACKET:
            rest = torch.zeros(_LENGTH + length - PACKET, dtype=torch.uint8)
            dist.broadcast(rest, 0)
            packet = torch.cat([packet, rest])
        kind, fields, forms, freed = json.loads(packet[_LENGTH : _LENGTH + length].numpy().tobytes())
        tensors = []
        for dtype, shape, device in forms:
            tensor = torch.empty(
                shape, dtype=getattr(torch, dtype), device=self.group.device if device == "cuda" else "cpu"
            )
            if tensor.numel():
                dist.broadcast(tensor.flatten().view(torch.uint8), 0)
            tensors.append(tensor)
        return Message(kind, fields, tensors, freed)

    def all_well(self, well: bool) -> bool:
        """True on every rank if all ranks say so."""
        told = torch.tensor([int(well)])
        dist.all_reduce(told, dist.ReduceOp.MIN)
        return bool(told)
