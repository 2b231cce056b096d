"""Shared parts of the GPU paths: weights in the kernels' layouts, rows as flat tables, the exact first step.

A chain's first step with eps prediction divides by √ᾱ = 5e-5, so it is computed in float32 (torch_loop.py). It depends
on nothing but the initial noise, so it is done here, for all rows at once, and the loop begins one step later.

Counted with 6 blocks: 166 torch operations with that step, 33 without. At a few µs each they may be a fifth of the
loop for one image on a GPU. First experiments there: record them as a graph, or use fused float32 operations.
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
    """Rows as tables that kernels index, on the device, and the numbers that launches depend on, on the host."""

    x: Tensor  # (M, C) float32, each row before its step `start`
    start: Tensor  # (M,) int32, index of the first step that the loop does; −1 where none is left
    offset: Tensor  # (M,) int32, entry of the row's chain at index 0 in the three tables
    times: Tensor  # (S·K, W) time embeddings, all chains one after the other
    table: Tensor  # (S·K, 7) float32, see COEFFICIENTS
    timesteps: Tensor  # (S·K,) int32
    starts: list[int]  # `start` on the host, descending
    guided: list[int]  # Rows.guided on the host
    begins: list[int]  # distinct values of `starts`, descending

    @property
    def steps(self) -> int:
        """Number of steps of the loop: that of the row that begins first."""
        return self.starts[0] + 1 if self.starts else 0

    def active(self, lowest: int) -> tuple[int, int]:
        """Number of rows that take part in any step with index >= `lowest`, and of guided ones among them."""
        count = bisect_left(self.starts, 1 - lowest, key=int.__neg__)
        return count, bisect_left(self.guided, count)


class KernelWeights(ABC):
    """A head's weights as the kernels read them: products in `dtype`, all else in float32, token_in transposed."""

    def __init__(self, weights: HeadWeights, dtype: torch.dtype):
        """dtype: of the matrix products, bfloat16 or float32."""
        self.weights, self.dtype, self.device = weights, dtype, weights.up.device
        self.width, self.depth, self.channels = weights.width, weights.depth, weights.channels
        self.token_in = weights.token_in.float().T.contiguous(), weights.token_in_bias.float()
        self.norm = weights.norm_weight.float().contiguous(), weights.norm_bias.float().contiguous()
        self.up = weights.up.to(dtype).contiguous(), weights.up_bias.float().contiguous()
        self.down = weights.down.to(dtype).contiguous(), weights.down_bias.float().contiguous()
        self.out = weights.out.float().contiguous(), weights.out_bias.float().contiguous()
        self.modulation = stack_modulation(weights, dtype)

    def __call__(self, rows: Rows, chains: Chains, prediction: str, clamp: float) -> Tensor:
        """(M, C) float32 tokens; see head_loop.py.

        Raises:
            ValueError: the rows are not sorted.
        """
        with self.on_device():
            plan = make_plan(self.weights, rows, chains, prediction, clamp, self.dtype)
            return self._run(plan, rows, prediction, clamp)

    @abstractmethod
    def _run(self, plan: Plan, rows: Rows, prediction: str, clamp: float) -> Tensor:
        """Run the loop over the plan; (M, C) float32."""

    def on_device(self) -> AbstractContextManager[None]:
        """Make the weights' device current: Triton launches there, whatever device the tensors are on."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def scratch(self, evaluations: int) -> tuple[Tensor, Tensor]:
        """Buffers for the modulation of E evaluations: y (E, W) and mod (E, (3L + 2)·W)."""
        y = torch.empty(evaluations, self.width, dtype=self.dtype, device=self.device)
        return y, torch.empty(evaluations, len(self.modulation[0]), dtype=self.dtype, device=self.device)


def make_plan(
    weights: HeadWeights, rows: Rows, chains: Chains, prediction: str, clamp: float, dtype: torch.dtype
) -> Plan:
    """Lay the rows out, with one synchronisation: the rows' numbers of steps are needed on the host.

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
    """Do the first step of the rows marked in `exact` in float32 throughout; writes x in place."""
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
