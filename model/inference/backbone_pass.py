"""The backbone's pass over an engine's rows: eager, or in fixed shapes that a CUDA graph replays.

Launching a kernel costs the host a few microseconds and a pass has hundreds: with few rows, that is all the time it
takes. A graph launches all of them at once, but only with the shapes and addresses it was captured with. So StaticPass
keeps every input at its address, pads the rows to one of a few sizes, and captures a graph at the first use of a size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.networks.condition import Condition

GRAPHS_KEPT = 96
KNOWN_UNIT = 32  # known tokens are rounded up to a multiple: fewer shapes for families that pack them


class PlainPass:
    """Eager pass: stack the rows' conditions when they change, and call the backbone."""

    def __init__(self, backbone: nn.Module, tokens: Tensor, known: Tensor):
        """tokens: (R, N, C) and known: (R, N) bool, the engine's own, which it changes in place."""
        self.backbone, self.tokens, self.known = backbone, tokens, known
        self._stacked: tuple[list[Condition], Condition] | None = None

    def __call__(self, slots: Sequence[int], conditions: Sequence[Condition], most_known: int) -> Tensor:
        """z (B, N, D) of B slots, each under the condition at the same index.

        most_known: no slot has more decided tokens.
        """
        if self._stacked is None or not _same(self._stacked[0], conditions):
            self._stacked = (list(conditions), conditions[0].stack(conditions))
        where = torch.tensor(slots, device=self.tokens.device)
        z: Tensor = self.backbone(self.tokens[where], self.known[where], self._stacked[1])
        return z

    def forget(self) -> None:
        """Free the memory that is kept between calls."""
        self._stacked = None


class StaticPass:
    """The same pass in fixed shapes. Padding repeats the first slot; its results are cut off."""

    def __init__(self, backbone: nn.Module, tokens: Tensor, known: Tensor, null: Condition):
        """Allocate the fixed inputs. null: any condition of one row, as a template for the shapes."""
        self.backbone, self.tokens, self.known = backbone, tokens, known
        self.device, self._most = tokens.device, 2 * len(tokens)  # each row, and the unconditional half of each
        self._slots = torch.zeros(self._most, dtype=torch.int64, device=self.device)
        self._condition = null.stack([null] * self._most)
        self._filled: list[Condition] = []
        self._z: Tensor | None = None  # (most, N, D), once D and its dtype are known
        self._replays: OrderedDict[tuple[int, int], Callable[[], object]] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def __call__(self, slots: Sequence[int], conditions: Sequence[Condition], most_known: int) -> Tensor:
        """z (B, N, D) as from PlainPass, in a buffer that the next call overwrites."""
        size = min(bucket(len(slots)), self._most)
        padded = [*conditions, *[conditions[0]] * (size - len(slots))]
        where = torch.tensor([*slots, *[slots[0]] * (size - len(slots))])
        self._slots[:size].copy_(send(where, self.device))
        if not _same(self._filled, padded):
            for target, *sources in zip(*(each.tensors() for each in (self._condition, *padded)), strict=True):
                torch.cat(sources, out=target[:size])
            self._filled = padded
        longest = min(-(-most_known // KNOWN_UNIT) * KNOWN_UNIT, self.known.shape[1])
        key = (size, longest if getattr(self.backbone, "packs_known", False) else 0)
        if key not in self._replays:
            self._replays[key] = self._record(*key)
            while len(self._replays) > GRAPHS_KEPT:
                self._replays.popitem(last=False)
        self._replays.move_to_end(key)
        self._replays[key]()
        assert self._z is not None
        return self._z[: len(slots)]

    def forget(self) -> None:
        """Free the memory that is kept between calls, except the inputs."""
        self._replays.clear()
        self._filled, self._z = [], None

    def _record(self, size: int, longest: int) -> Callable[[], object]:
        """A function that reads the fixed inputs and writes the fixed output: on CUDA, a graph's replay."""
        where, condition = self._slots[:size], self._condition[:size]

        def work() -> None:
            z = self.backbone(self.tokens[where], self.known[where], condition, longest)
            if self._z is None:
                self._z = z.new_empty(self._most, *z.shape[1:])
            self._z[:size].copy_(z)

        if self._pool is None:
            return work
        # Libraries choose algorithms and allocate workspace in their first calls, which must not be captured. These run
        # on a side stream because the capture will.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may be loading the next checkpoint.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


def bucket(rows: int) -> int:
    """The size that this many rows are padded to: none up to 8, then four sizes per octave (at most 25 % more)."""
    if rows <= 8:
        return rows
    unit = 1 << (rows - 1).bit_length() - 3
    return -(-rows // unit) * unit


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy from the host to a device without waiting for it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def _same(one: Sequence[Condition], other: Sequence[Condition]) -> bool:
    """Return True if both hold the same objects in the same order; conditions are never modified."""
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
