"""The sampling loop as fused operations: 3·L + 3 launches a step, replayed as one CUDA graph per bucket of rows.

    once per chunk of steps   y = silu(time + condition), mod = y Wᵀ        2 launches, for all steps of the chunk
    every step                h = token_in(x)
        every block               n = LN(h)·scale + shift,  u = silu(n Wᵀ),  h += gate·(u Wᵀ)
                              out = final layer(h),  x = update(out, x, noise)

With 6 blocks that is 21 launches. A graph holds one step; the step's index lives on the device and the last kernel
decrements it, so that one graph serves chains of any length. Shapes in a graph are fixed: rows are padded to a bucket,
padded rows never begin, and what they compute is never read.

Modulation is hoisted for as many steps as add up to HOISTED_ROWS evaluations. Its result, HOISTED_ROWS·(3·L + 2)·W·2
bytes, 42 MB at W = 1024 and L = 6, then stays in the 50 MB L2 cache of an H100 or H200 between product and readers.

On an H200 a step of MAR-B's head takes 78 µs with one guided token, 122 with 64 and 428 with 1,024 (docs/kernels.md).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from fluid_kernels.configs import backend_of
from fluid_kernels.head_loop import COEFFICIENTS, HeadWeights, Rows
from fluid_kernels.loops.plan import KernelWeights, Plan
from fluid_kernels.ops.denoise_update import denoise_update
from fluid_kernels.ops.gated_residual import gated_residual
from fluid_kernels.ops.head_out import head_out
from fluid_kernels.ops.linear_triton import linear
from fluid_kernels.ops.ln_modulate import ln_modulate
from fluid_kernels.ops.modulation import modulation
from fluid_kernels.ops.token_in import token_in

HOISTED_ROWS = 1024
TABLE_ROWS = 4096  # entries of a bucket's table of steps, 0.1 MB; more chains than that get a larger one, by doubling
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
BUCKETS_KEPT = 64  # with their graphs and buffers: 8·W bytes an evaluation, 16 MiB at 2048 evaluations of W = 1024


def bucket_size(count: int) -> int:
    """The smallest bucket that holds `count` rows; 0 for none. Beyond the table: a multiple of its largest."""
    if count == 0:
        return 0
    return next((size for size in BUCKETS if size >= count), -(-count // BUCKETS[-1]) * BUCKETS[-1])


def bucket_of(counts: tuple[int, int]) -> tuple[int, int]:
    """The bucket for (rows, guided ones among them): guided are none or all, or each number would need its own graph.

    With guidance that acts in the same steps of all images, which is usual, nothing is computed in vain.
    """
    rows = bucket_size(counts[0])
    return rows, rows if counts[1] else 0


def exact_head(weights: HeadWeights) -> TritonHead:
    """A head for the first steps of eps chains, in float32 by three TF32 tensor-core products, with its own graphs."""
    return TritonHead(weights, torch.float32, hoists=False)


class TritonHead(KernelWeights):
    """The fused path; dtype is that of the products: sums, statistics, outer layers and update are float32."""

    def __init__(self, weights: HeadWeights, dtype: torch.dtype, hoists: bool = True):
        """hoists: compute the modulation of many steps ahead; otherwise of one, for a loop that runs a single step."""
        super().__init__(weights, dtype)
        self.graphs, self.hoists = backend_of(self.device) != "cpu", hoists
        self._shared = self.scratch(HOISTED_ROWS if hoists else 1)
        self._buckets: OrderedDict[tuple[int, int, int, str, float], _Bucket] = OrderedDict()
        self._float32: TritonHead | None = None

    def _exact(self) -> TritonHead | None:
        if self.dtype != torch.float32 and self._float32 is None:
            self._float32 = exact_head(self.weights)
        return self._float32

    def buckets(self, most: int) -> list[tuple[int, int]]:
        """(rows, guided) of every bucket that steps of up to `most` rows need, the largest first."""
        sizes = sorted({bucket_size(n) for n in range(1, most + 1)}, reverse=True)
        return [(size, guided) for size in sizes for guided in (size, 0)]

    def _run(self, plan: Plan, rows: Rows, prediction: str, clamp: float) -> Tensor:
        bucket: _Bucket | None = None
        stop = plan.steps
        while stop:
            start, counts = self._chunk(plan, stop)
            if bucket is None or bucket.counts != counts:
                if bucket is not None:
                    bucket.unload(plan)
                bucket = self._bucket(counts, len(plan.table), prediction, clamp)
                bucket.load(plan, rows, counts)
            bucket.run(plan, start, stop)
            stop = start
        if bucket is not None:
            bucket.unload(plan)
        return plan.x

    def hoisting(self, evaluations: int) -> tuple[Tensor, Tensor]:
        """y (slots, E, W) and mod (slots, E, N) for a bucket. All buckets share them: only one runs at a time.

        A buffer too small for a larger bucket is kept by the graphs that were recorded on it.
        """
        slots = max(1, HOISTED_ROWS // evaluations) if self.hoists else 1
        used = slots * evaluations
        if used > len(self._shared[0]):
            self._shared = self.scratch(1 << (used - 1).bit_length())
        y, mod = self._shared
        return y[:used].unflatten(0, (slots, evaluations)), mod[:used].unflatten(0, (slots, evaluations))

    @staticmethod
    def _chunk(plan: Plan, stop: int) -> tuple[int, tuple[int, int]]:
        """The first step of the chunk that ends before `stop`, and the rows and guided rows that take part in it.

        A chunk ends where rows join that need a larger bucket, so that they are not computed before they begin.
        """
        size = sum(bucket_of(plan.active(stop - 1)))
        start = max(0, stop - max(1, HOISTED_ROWS // size))
        for index in plan.begins:
            if start <= index < stop - 1 and sum(bucket_of(plan.active(index))) > size:
                start = index + 1
                break
        return start, plan.active(start)

    def _bucket(self, counts: tuple[int, int], table: int, prediction: str, clamp: float) -> _Bucket:
        capacity = max(TABLE_ROWS, 1 << (table - 1).bit_length())
        key = (*bucket_of(counts), capacity, prediction, clamp)
        if key not in self._buckets:
            with torch.inference_mode(False):  # buffers made in inference mode could not be filled outside of it
                self._buckets[key] = _Bucket(self, *key)
            if len(self._buckets) > BUCKETS_KEPT:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return self._buckets[key]


class _Bucket:
    """Buffers for up to `rows` rows and `guided` guided ones, and the graph of a step on them."""

    def __init__(self, head: TritonHead, rows: int, guided: int, table: int, prediction: str, clamp: float):
        self.head, self.rows, self.evaluations = head, rows, rows + guided
        self.prediction, self.clamp = prediction, clamp
        self.counts = (0, 0)  # rows and guided rows of the present call that are in
        self.graph: torch.cuda.CUDAGraph | None = None

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=head.device)

        self.step = zeros(3, dtype=torch.int32)  # current, next, first of the chunk
        self.x, self.condition = zeros(rows, head.channels), zeros(self.evaluations, head.width)
        self.uncond, self.offset, self.start, self.position = (zeros(rows, dtype=torch.int32) for _ in range(4))
        self.entry = zeros(self.evaluations, dtype=torch.int32)  # of index 0, in the tables
        self.guidance, self.temperature, self.seed = zeros(rows), zeros(rows), zeros(rows, dtype=torch.int64)
        self.table, self.timesteps = zeros(table, len(COEFFICIENTS)), zeros(table, dtype=torch.int32)
        self.h, self.out = zeros(self.evaluations, head.width), zeros(self.evaluations, len(head.out[0]))
        self.n, self.u = zeros(2, self.evaluations, head.width, dtype=head.dtype)
        self.y, self.mod = head.hoisting(self.evaluations)

    def load(self, plan: Plan, rows: Rows, counts: tuple[int, int]) -> None:
        """Copy in the first rows and their unconditional halves; the bucket's padding rows never begin."""
        self.counts = count, guided = counts
        which = rows.guided[:guided]
        self.start.fill_(-1)
        self.uncond.fill_(-1)
        self.uncond[which] = torch.arange(self.rows, self.rows + guided, dtype=torch.int32, device=which.device)
        for own, theirs in (
            (self.x, plan.x), (self.start, plan.start), (self.offset, plan.offset), (self.position, rows.position),
            (self.guidance, rows.guidance), (self.temperature, rows.temperature), (self.seed, rows.seed),
            (self.condition, rows.condition), (self.entry, plan.offset),
        ):  # fmt: skip
            own[:count].copy_(theirs[:count])
        self.condition[self.rows : self.rows + guided] = rows.condition[len(rows) : len(rows) + guided]
        self.entry[self.rows : self.rows + guided] = plan.offset[which]
        self.table[: len(plan.table)] = plan.table
        self.timesteps[: len(plan.table)] = plan.timesteps

    def unload(self, plan: Plan) -> None:
        """Copy x back into the plan."""
        plan.x[: self.counts[0]] = self.x[: self.counts[0]]
        self.counts = (0, 0)

    def run(self, plan: Plan, start: int, stop: int) -> None:
        """Run steps stop − 1 … start."""
        modulation(
            plan.times, self.condition, self.entry + start, *self.head.modulation, self.y, self.mod, stop - start
        )
        self.step[1].fill_(stop - 1)  # a fill, because a copy from host memory would wait for the device
        self.step[2].fill_(start)
        left = stop - start
        if self.head.graphs and self.graph is None:
            self._launch()  # compiles what is new, and does the first step
            left -= 1
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self._launch()
        for _ in range(left):
            if self.graph is None:
                self._launch()
            else:
                self.graph.replay()

    def _launch(self) -> None:
        """Launch one step."""
        head, width = self.head, self.head.width
        token_in(self.x, *head.token_in, self.uncond, self.step, self.h)
        for i in range(head.depth):
            mod = self.mod[:, :, 3 * width * i :]
            ln_modulate(self.h, head.norm[0][i], head.norm[1][i], mod, self.step, self.n)
            linear(self.n, head.up[0][i], head.up[1][i], self.u, "silu")
            gated_residual(self.h, self.u, head.down[0][i], head.down[1][i], mod[:, :, 2 * width :], self.step)
        head_out(self.h, self.mod[:, :, 3 * width * head.depth :], self.step, *head.out, self.out)
        denoise_update(
            self.out, self.x, self.step, self.uncond, self.offset, self.start, self.guidance, self.temperature,
            self.seed, self.position, self.table, self.timesteps, self.prediction, self.clamp,
        )  # fmt: skip
