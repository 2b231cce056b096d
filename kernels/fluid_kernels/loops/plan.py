"""What the GPU forms of the sampling loop share: weights in the kernels' layouts, rows as flat tables, the first step.

A chain's first step with eps prediction divides by √ᾱ = 5e-5, so it is computed in float32 (head_loop_torch.py). It
depends on nothing but the initial noise, so it is done here, for all rows at once, and the loop begins one step later.

Counted with 6 blocks: 166 torch operations with that step, 33 without. At a few µs each they may be a fifth of a loop
of one picture on a GPU: recording them as a graph, or doing the step by the fused operations in float32, is what to
try first when there is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS, Chains, HeadWeights, Rows, evaluate_ref, guide, update
from fluid_kernels.loops.torch_loop import MAGNIFIED
from fluid_kernels.ops.modulation import stack_modulation
from fluid_kernels.ops.philox_triton import normal
from fluid_kernels.philox import INITIAL, STEP


@dataclass(frozen=True)
class Plan:
    """Rows with everything that kernels index, on the device, and what launches depend on, on the host."""

    x: Tensor  # (M, C) float32: where each row stands before its step `start`
    start: Tensor  # (M,) int32: the index of the first step that the loop does; −1 where none is left
    offset: Tensor  # (M,) int32: row of chain's index 0 in the tables
    times: Tensor  # (T, W): all chains, one after the other
    table: Tensor  # (T, 7) float32
    timesteps: Tensor  # (T,) int32
    starts: list[int]  # `start` on the host, descending
    guided: list[int]  # Rows.guided on the host
    begins: list[int]  # what different values `starts` has, descending

    @property
    def steps(self) -> int:
        """Steps of the loop: those of the row that begins first."""
        return self.starts[0] + 1 if self.starts else 0

    def active(self, lowest: int) -> tuple[int, int]:
        """How many rows take part in some step from `lowest` on up, and how many guided ones among them."""
        count = bisect_left(self.starts, 1 - lowest, key=int.__neg__)
        return count, bisect_left(self.guided, count)


class KernelWeights(ABC):
    """A head's weights as the kernels read them: products in `dtype`, all else in float32, token_in transposed.

    dtype: bfloat16 or float32.
    """

    def __init__(self, weights: HeadWeights, dtype: torch.dtype):
        self.weights, self.dtype, self.device = weights, dtype, weights.up.device
        self.width, self.depth, self.channels = weights.width, weights.depth, weights.channels
        self.token_in = weights.token_in.float().T.contiguous(), weights.token_in_bias.float()
        self.norm = weights.norm_weight.float().contiguous(), weights.norm_bias.float().contiguous()
        self.up = weights.up.to(dtype).contiguous(), weights.up_bias.float().contiguous()
        self.down = weights.down.to(dtype).contiguous(), weights.down_bias.float().contiguous()
        self.out = weights.out.float().contiguous(), weights.out_bias.float().contiguous()
        self.modulation = stack_modulation(weights, dtype)

    def __call__(self, rows: Rows, chains: Chains, prediction: str, clamp: float) -> Tensor:
        """Run the loop; (M, C) float32. See head_loop.py.

        Raises:
            ValueError: the rows are not sorted.
        """
        with self.on_device():
            plan = make_plan(self.weights, rows, chains, prediction, clamp, self.dtype)
            return self._run(plan, rows, prediction, clamp)

    @abstractmethod
    def _run(self, plan: Plan, rows: Rows, prediction: str, clamp: float) -> Tensor:
        """What each form of the loop does with the plan; (M, C)."""

    def on_device(self) -> AbstractContextManager[None]:
        """Triton launches on the current device, wherever the tensors are."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def scratch(self, evaluations: int) -> tuple[Tensor, Tensor]:
        """Room for the modulation of so many evaluations: y and mod, a row each."""
        y = torch.empty(evaluations, self.width, dtype=self.dtype, device=self.device)
        return y, torch.empty(evaluations, len(self.modulation[0]), dtype=self.dtype, device=self.device)


def make_plan(
    weights: HeadWeights, rows: Rows, chains: Chains, prediction: str, clamp: float, dtype: torch.dtype
) -> Plan:
    """One synchronisation with the device: how many steps each row has, and whether its first is done here.

    Raises:
        ValueError: the rows are not sorted.
    """
    count, channels = len(rows), weights.channels
    steps = chains.steps[rows.chain]
    first = chains.coefficients[rows.chain, (steps - 1).clamp_min(0)]  # (M, 7)
    magnified = first[:, 2] * first[:, 1] / first[:, 0] >= MAGNIFIED
    known = torch.cat([steps, magnified.long(), rows.guided]).tolist()
    lengths, guided = known[:count], known[2 * count :]
    exact = [bool(m) and prediction == "eps" and dtype != torch.float32 for m in known[count : 2 * count]]
    if lengths != sorted(lengths, reverse=True) or any(a >= b for a, b in pairwise(guided)):
        raise ValueError("rows must come with the most steps first, and guided rows ascending")
    x = normal(rows.seed, INITIAL, rows.position, torch.full_like(rows.seed, TRAIN_STEPS), channels)
    if any(exact):
        _exact_first_step(weights, rows, chains, x, exact, guided, prediction, clamp)
    starts = [length - 1 - one for length, one in zip(lengths, exact, strict=True)]
    longest = chains.timesteps.shape[1]
    return Plan(
        x, torch.tensor(starts, dtype=torch.int32, device=x.device), (rows.chain * longest).int(),
        chains.times.flatten(0, 1), chains.coefficients.flatten(0, 1).contiguous(), chains.timesteps.flatten().int(),
        starts, guided, sorted(set(starts), reverse=True),
    )  # fmt: skip


def _exact_first_step(
    weights: HeadWeights, rows: Rows, chains: Chains, x: Tensor, exact: list[bool], guided: list[int],
    prediction: str, clamp: float,
) -> None:  # fmt: skip
    """Do the first step of the rows marked in `exact`, in float32 throughout; x in place."""
    place = {row: k for k, row in enumerate(i for i, one in enumerate(exact) if one)}
    own = torch.tensor(list(place), device=x.device)
    among = [(k, place[row]) for k, row in enumerate(guided) if row in place]  # (k-th guided row, its place in `own`)
    half = torch.tensor([k for k, _ in among], dtype=torch.int64, device=x.device)
    inner = torch.tensor([at for _, at in among], dtype=torch.int64, device=x.device)
    some = Rows(
        condition=rows.condition[torch.cat([own, len(rows) + half])], guided=inner, chain=rows.chain[own],
        guidance=rows.guidance[own], temperature=rows.temperature[own],
        seed=rows.seed[own], position=rows.position[own],
    )  # fmt: skip
    both = torch.cat([torch.arange(len(own), device=x.device), inner])
    chain = some.chain[both]
    index = chains.steps[chain] - 1
    y = F.silu((chains.times[chain, index] + some.condition).float())
    out = guide(evaluate_ref(weights, x[own][both], y), some, len(own), len(inner), weights.channels)
    chain, index = chain[: len(own)], index[: len(own)]
    noise = normal(some.seed, STEP, some.position, chains.timesteps[chain, index], weights.channels)
    coefficients = chains.coefficients[chain, index]
    x[own] = update(out, x[own], coefficients, noise, some.temperature.float(), prediction, clamp)
