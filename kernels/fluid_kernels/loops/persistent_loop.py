"""The sampling loop as one launch per chunk of steps; for how and why see persistent_kernel.py.

The host prepares the rows (plan.py), hoists the modulation of a chunk of steps as fused_loop.py does, and launches
tiles × team programs, at most as many as the chip has multiprocessors. The interpreter runs programs one after the
other, so there each phase is a launch: the same code, with launches in place of the waits.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
from torch import Tensor

from fluid_kernels.configs import MOST_REGISTERS, Config, backend_of, persistent_config, precision
from fluid_kernels.head_loop import HeadWeights, Rows
from fluid_kernels.loops.fused_loop import HOISTED_ROWS, TritonHead, exact_head
from fluid_kernels.loops.persistent_kernel import COUNTER_STRIDE, head_loop_kernel
from fluid_kernels.loops.plan import KernelWeights, Plan
from fluid_kernels.ops.modulation import modulation

WIDTH_MULTIPLE = 128  # a multiple of every tile's n and k
LARGEST_WIDTH = 1536  # the ahead-of-time compile checks none above
SMALLEST_WIDTH = 256  # on a GPU: at 128 a tile spills on sm_80, another one on sm_90


class PersistentHead(KernelWeights):
    """The persistent path; dtype is that of the products: sums, statistics, outer layers and update are float32."""

    def __init__(self, weights: HeadWeights, dtype: torch.dtype):
        """Lay out the weights.

        Raises:
            ValueError: the head is too wide or narrow, its width is not a multiple of 128, or this interpreter cannot
                loop.
        """
        super().__init__(weights, dtype)
        self.backend = backend_of(self.device)
        smallest = WIDTH_MULTIPLE if self.backend == "cpu" else SMALLEST_WIDTH
        if self.width % WIDTH_MULTIPLE or not smallest <= self.width <= LARGEST_WIDTH:
            raise ValueError(
                f"the persistent kernel takes widths that are multiples of {WIDTH_MULTIPLE} from {smallest} to "
                f"{LARGEST_WIDTH}, not {self.width}; use triton"
            )
        if self.backend == "cpu":
            _check_interpreter()
        self.processors = 1 if self.backend == "cpu" else _processors(self.device)
        self._float32: TritonHead | None = None

    def _exact(self) -> TritonHead | None:
        if self.dtype != torch.float32 and self._float32 is None:
            self._float32 = exact_head(self.weights)
        return self._float32

    def _run(self, plan: Plan, rows: Rows, prediction: str, clamp: float) -> Tensor:
        count, guided = len(rows), len(rows.guided)
        uncond = torch.full((count,), -1, dtype=torch.int32, device=self.device)
        uncond[rows.guided] = torch.arange(count, count + guided, dtype=torch.int32, device=self.device)
        condition = rows.condition.contiguous()
        entry = torch.cat([plan.offset, plan.offset[rows.guided]])
        tile = persistent_config(self.backend, count, guided, self.width, self.processors, self.dtype)
        state = _State(self, rows, uncond, tile)
        stop = plan.steps
        slots = max(1, min(stop, HOISTED_ROWS // (count + guided)))
        y, mod = (t.unflatten(0, (slots, -1)) for t in self.scratch(slots * (count + guided)))
        while stop:
            start = max(0, stop - slots)
            modulation(plan.times, condition, entry + start, *self.modulation, y, mod, stop - start)
            state.run(plan, mod, start, stop, prediction, clamp)
            stop = start
        return plan.x


class _State:
    """Buffers that hold the rows between phases, and the launches on them."""

    def __init__(self, head: PersistentHead, rows: Rows, uncond: Tensor, config: tuple[Config, int]):
        self.head, self.uncond, (self.config, self.team) = head, uncond, config
        self.count, self.evaluations = len(rows), len(rows) + len(rows.guided)
        self.halves = 2 if len(rows.guided) else 1
        self.tiles = triton.cdiv(self.count * self.halves, self.config.m)

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=head.device)

        self.options: dict[str, object] = {}
        if head.backend != "cpu" and self.team > 1:
            self.options["launch_cooperative_grid"] = True
        if head.backend == "cuda":
            self.options["maxnreg"] = MOST_REGISTERS
        slots = self.tiles * self.config.m
        self.h, self.u = empty(slots, head.width), empty(slots, head.width, dtype=head.dtype)
        self.sums = empty(slots, head.width // self.config.n, 2)  # mean, sum of squared deviations
        self.out = empty(self.evaluations, len(head.out[0]))
        self.counters = empty(self.tiles, COUNTER_STRIDE.value, dtype=torch.int32)
        self.settings = rows.guidance.float(), rows.temperature.float(), rows.seed, rows.position.int()

    def run(self, plan: Plan, mod: Tensor, start: int, stop: int, prediction: str, clamp: float) -> None:
        """Run steps stop − 1 … start; mod (slots, E, N) holds their modulation."""
        head, phases = self.head, 1 + (stop - start) * (2 * self.head.depth + 1)
        together = 1 if head.backend == "cpu" else phases
        for first in range(0, phases, together):
            self.counters.zero_()
            c, outputs = self.config, len(head.out[0])
            head_loop_kernel[(self.tiles * self.team,)](
                plan.x, self.h, self.u, self.sums, self.out, self.counters, self.uncond, mod,
                *head.token_in, *head.norm, *head.up, *head.down, *head.out,
                plan.offset, plan.start, *self.settings, plan.table, plan.timesteps,
                self.count, self.evaluations, mod.stride(1), self.team,
                head.width, head.channels, outputs, stop - 1, start, first, first + together, float(clamp),
                W=head.width, L=head.depth, C=head.channels, N_OUT=outputs, EPS=prediction == "eps",
                HALVES=self.halves, BLOCK_M=c.m, BLOCK_N=c.n, BLOCK_K=c.k,
                BLOCK_W=triton.next_power_of_2(head.width), BLOCK_C=triton.next_power_of_2(head.channels), BLOCK_O=4,
                PRECISION=precision(head.backend), UPCAST=head.backend == "cpu",
                num_warps=c.warps, num_stages=c.stages,
                **self.options,
            )  # fmt: skip


def _check_interpreter() -> None:
    """Raise ValueError for an interpreter that fails at loops of a length known at run time, as this kernel's are.

    Triton 3.6 turns arrays of one element into integers, which numpy 2.4 refuses; compiled kernels are not affected.
    """
    newer, older = np.lib.NumpyVersion(np.__version__) >= "2.4.0", triton.__version__.startswith("3.6.")
    if newer and older:
        raise ValueError(
            f"Triton {triton.__version__} cannot interpret the persistent kernel with numpy {np.__version__}: install "
            "triton 3.7 or newer, or numpy older than 2.4"
        )


def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
