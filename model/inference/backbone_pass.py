"""The backbone's pass over an engine's rows: eager, or in fixed shapes that a CUDA graph replays.

Launching a kernel costs the host a few microseconds and a pass has hundreds: with few rows, that is all the time it
takes. A graph launches all of them at once, but only with the shapes and addresses it was captured with. So StaticPass
keeps every input at its address, pads the rows to one of a few sizes, and captures a graph for each: ahead of the first
image with `warm_up`, because a capture stops the device, or at the first use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fluid_kernels.transfers import send
from model.networks.causal import Stepwise
from model.networks.condition import Condition
from model.networks.layers.key_values import KeyValues
from model.networks.transformer import TextContext

# Backbones that pack their known tokens, or read keys of past positions, have a shape for each number of them, rounded
# up to a quarter of the image, or to a multiple of this.
KNOWN_UNIT = 32


class PlainPass:
    """Eager pass: stack the rows' conditions when they change, and call the backbone."""

    def __init__(self, backbone: nn.Module, tokens: Tensor, known: Tensor, cache: KeyValues | None = None):
        """The tensors are the engine's own, which it changes in place.

        Args:
            tokens: (R, N, C), or (R, N) if discrete. known: (R, N) bool.
            cache: of a causal backbone, for 2R rows.
        """
        self.backbone, self.tokens, self.known, self.cache = backbone, tokens, known, cache
        self._stacked: tuple[list[Condition], Condition] | None = None

    def __call__(
        self, slots: Sequence[int], conditions: Sequence[Condition], most_known: int, positions: Sequence[int] = ()
    ) -> Tensor:
        """z (B, N, D) of B slots, each under the condition at the same index; (B, 1, D) with a causal backbone.

        Args:
            slots: with a causal backbone, places in the cache: slot R + r is the unconditional half of row r.
            most_known: no slot has more decided tokens; with a causal backbone, no position is that far.
            positions: with a causal backbone, the one that each slot computes; with a timed one, the steps to follow.
        """
        if self._stacked is None or not _same(self._stacked[0], conditions):
            self._stacked = (list(conditions), conditions[0].stack(conditions))
        where = send(torch.tensor([slots, positions or [0] * len(slots)]), self.tokens.device)
        longest = most_known if self.cache is not None else None
        return run_backbone(self, where, self._stacked[1], longest)

    def forget(self) -> None:
        """Free the memory that is kept between calls."""
        self._stacked = None


def run_backbone(run: PlainPass | StaticPass, where: Tensor, condition: Condition, longest: int | None) -> Tensor:
    """The backbone over the rows and positions in `where` (2, B)."""
    slots, positions = where
    if run.cache is None:
        time = {"following": positions} if getattr(run.backbone, "timed", False) else {}
        z: Tensor = run.backbone(run.tokens[slots], run.known[slots], condition, longest, **time)
    else:
        assert isinstance(condition, TextContext) and longest is not None
        z = cast(Stepwise, run.backbone).step(run.tokens, slots, positions, condition, run.cache, longest)
    return z


class StaticPass:
    """The same pass in fixed shapes. Padding repeats the first slot; its results are cut off.

    All graphs share one pool of memory and one stream: they run one after the other, and a library's workspace belongs
    to a stream.
    """

    def __init__(
        self, backbone: nn.Module, tokens: Tensor, known: Tensor, null: Condition, cache: KeyValues | None = None
    ):
        """Allocate the fixed inputs. null: any condition of one row, as a template for the shapes."""
        self.backbone, self.tokens, self.known, self.cache = backbone, tokens, known, cache
        self.device, self._most = tokens.device, 2 * len(tokens)  # each row, and the unconditional half of each
        self._where = torch.zeros(2, self._most, dtype=torch.int64, device=self.device)
        self._null = null
        self._conditions: dict[int, Condition] = {}  # fixed inputs, by the text tokens that they have room for
        self._filled: dict[int, list[Condition]] = {}  # what they hold
        self._z: Tensor | None = None  # (most, N, D), once D and its dtype are known
        self._condition(null.length)
        self._replays: dict[tuple[int, int, int], Callable[[], object]] = {}  # by shape
        self._stream: torch.cuda.Stream | None = None
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Every (rows, known tokens, text tokens) that short prompts are padded to, the largest first.

        They are 24 for 64 rows, 120 if known tokens are packed. Longer prompts have as many for each length, captured
        when they come: their conditions take memory that may never be needed.
        """
        sizes = sorted({min(bucket(n), self._most) for n in range(1, self._most + 1)}, reverse=True)
        total = self.known.shape[1]
        first = 0 if self.cache is None else 1  # a causal step reads at least its own position
        known = sorted({self._padded_known(n) for n in range(first, total + 1)}, reverse=True)
        return [(size, count, self._null.length) for size in sizes for count in known]

    def warm_up(self, shape: tuple[int, int, int]) -> None:
        """Capture a shape of `shapes` before it is needed. Begin with the largest: smaller ones reuse its memory."""
        if shape not in self._replays:
            self._replays[shape] = self._record(*shape)

    def _padded_known(self, most_known: int) -> int:
        if not getattr(self.backbone, "packs_known", False):
            return 0
        total = self.known.shape[1]
        unit = max(KNOWN_UNIT, -(-total // 4))
        return min(-(-most_known // unit) * unit, total)

    def __call__(
        self, slots: Sequence[int], conditions: Sequence[Condition], most_known: int, positions: Sequence[int] = ()
    ) -> Tensor:
        """z as from PlainPass, in a buffer that the next call overwrites."""
        size = min(bucket(len(slots)), self._most)
        more = size - len(slots)
        padded = [*conditions, *[conditions[0]] * more]
        places = positions or [0] * len(slots)
        where = torch.tensor([[*slots, *[slots[0]] * more], [*places, *[places[0]] * more]])
        self._where[:, :size].copy_(send(where, self.device))
        text = max(condition.length for condition in padded)
        if not _same(self._filled.get(text, []), padded):
            roomy = [condition.padded(text) for condition in padded]
            for target, *sources in zip(*(each.tensors() for each in (self._condition(text), *roomy)), strict=True):
                torch.cat(sources, out=target[:size])
            self._filled[text] = padded
        key = (size, self._padded_known(most_known), text)
        self.warm_up(key)
        self._replays[key]()
        assert self._z is not None
        return self._z[: len(slots)]

    def forget(self) -> None:
        """Free the memory that is kept between calls, except the inputs of short prompts.

        The next graphs get a pool of their own: this one goes with its last graph, and PyTorch refuses its handle then.
        """
        self._replays.clear()
        self._conditions = {self._null.length: self._condition(self._null.length)}
        self._filled, self._z = {}, None
        if self._pool is not None:
            self._pool = torch.cuda.graph_pool_handle()

    def _condition(self, text: int) -> Condition:
        """The fixed input for conditions with room for this many text tokens."""
        if text not in self._conditions:
            roomy = self._null.padded(text)
            self._conditions[text] = roomy.stack([roomy] * self._most)
        return self._conditions[text]

    def _record(self, size: int, longest: int, text: int) -> Callable[[], object]:
        """A function that reads the fixed inputs and writes the fixed output: on CUDA, a graph's replay."""
        where, condition = self._where[:, :size], self._condition(text)[:size]

        def work() -> None:
            z = run_backbone(self, where, condition, longest)
            if self._z is None:
                self._z = z.new_empty(self._most, *z.shape[1:])
            self._z[:size].copy_(z)

        if self._pool is None:
            return work
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        # Libraries choose algorithms and allocate workspace in their first calls, which must not be captured: a
        # workspace in the graphs' pool would be freed with them. The allocator keeps memory by stream, so these run on
        # the stream of the capture.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may be loading the next checkpoint.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


def prefill(run: PlainPass | StaticPass, slots: Sequence[int], conditions: Sequence[Condition], positions: int) -> None:
    """Fill the cache of slots of one image up to `positions`: it begins there, after a restore or with kept tokens."""
    assert run.cache is not None
    rows = send(torch.tensor(slots), run.tokens.device)
    tokens = run.tokens[rows % len(run.tokens), :positions]  # (B, n, …)
    condition = conditions[0].stack(conditions)
    assert isinstance(condition, TextContext)
    cast(Stepwise, run.backbone).prefill(tokens, rows, condition, run.cache)


def bucket(rows: int) -> int:
    """The size that this many rows are padded to: none up to 8, then four sizes per octave (at most 25 % more)."""
    if rows <= 8:
        return rows
    unit = 1 << (rows - 1).bit_length() - 3
    return -(-rows // unit) * unit


def _same(one: Sequence[Condition], other: Sequence[Condition]) -> bool:
    """Return True if both hold the same objects in the same order; conditions are never modified."""
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
