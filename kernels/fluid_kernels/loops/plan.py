"""What the loop of kernels begins with: weights in the kernels' layouts, rows as flat tables, the exact first step.

A chain's first step with eps prediction divides by √ᾱ = 5e-5, so it is computed in float32 (head_loop.MAGNIFIED). It
depends on nothing but the initial noise, so it is a plan of its own: a single step of all rows at once, whatever their
chains, by the fused operations in float32 (fused_loop.py); then the loop begins one step later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS, Chains, HeadWeights, RowFacts, Rows, facts, tempered
from fluid_kernels.ops.modulation import stack_modulation
from fluid_kernels.ops.philox_triton import normal
from fluid_kernels.philox import INITIAL
from fluid_kernels.transfers import send


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
            plan, known = make_plan(rows, chains, self.channels)
            exact = self._exact()
            if prediction == "eps" and exact is not None and any(known.magnifies):
                once, some, own = first_steps(plan, rows, known.magnifies)
                x = exact._run(once, some, prediction, clamp)
                plan = after_first_steps(plan, x, own, known.magnifies)
            return self._run(plan, rows, prediction, clamp)

    @abstractmethod
    def _exact(self) -> KernelWeights | None:
        """The same head in float32; None if this one is."""

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


def make_plan(rows: Rows, chains: Chains, channels: int) -> tuple[Plan, RowFacts]:
    """Lay the rows out, each before its first step. The host waits only if it has to read the rows back.

    Raises:
        ValueError: the rows are not sorted.
    """
    known = facts(rows, chains)
    unit = normal(rows.seed, INITIAL, rows.position, torch.full_like(rows.seed, TRAIN_STEPS), channels)
    x = tempered(unit, rows, chains)
    starts = [steps - 1 for steps in known.steps]
    longest = chains.timesteps.shape[1]
    plan = Plan(
        x, send(torch.tensor(starts, dtype=torch.int32), x.device), (rows.chain * longest).int(),
        chains.times.flatten(0, 1), chains.coefficients.flatten(0, 1).contiguous(), chains.timesteps.flatten().int(),
        starts, known.guided, sorted(set(starts), reverse=True),
    )  # fmt: skip
    return plan, known


def first_steps(plan: Plan, rows: Rows, marked: list[bool]) -> tuple[Plan, Rows, Tensor | None]:
    """The first step of the marked rows as a plan of a single step, at index 0 whatever the rows' chains.

    Returns:
        the plan, its rows, and their places among all rows; None if all are marked.
    """
    if all(marked):
        count = len(rows)
        some, own = rows, None
        x, start, offset = plan.x, plan.start, plan.offset
        guided = plan.guided
    else:
        places = [i for i, one in enumerate(marked) if one]
        place = {row: k for k, row in enumerate(places)}
        among = [(k, place[row]) for k, row in enumerate(plan.guided) if row in place]  # (k-th guided row, its place)
        count, guided = len(places), [at for _, at in among]
        index = torch.tensor([*places, *(len(rows) + k for k, _ in among), *guided])
        sent = send(index, plan.x.device)  # places, conditions of the unconditional halves, guided
        own = sent[:count]
        some = Rows(
            condition=rows.condition[sent[: count + len(guided)]], guided=sent[count + len(guided) :],
            chain=rows.chain[own], guidance=rows.guidance[own], temperature=rows.temperature[own],
            seed=rows.seed[own], position=rows.position[own],
        )  # fmt: skip
        x, start, offset = plan.x[own], plan.start[own], plan.offset[own]
    once = replace(
        plan, x=x, start=torch.zeros_like(start), offset=offset + start, starts=[0] * count, guided=guided, begins=[0]
    )
    return once, some, own


def after_first_steps(plan: Plan, x: Tensor, own: Tensor | None, marked: list[bool]) -> Plan:
    """The rest of the plan; x: (m, C) of the rows at places `own` after their first step."""
    if own is None:
        rest = x
    else:
        rest = plan.x
        rest[own] = x
    starts = [start - one for start, one in zip(plan.starts, marked, strict=True)]
    start = send(torch.tensor(starts, dtype=torch.int32), rest.device)
    return replace(plan, x=rest, start=start, starts=starts, begins=sorted(set(starts), reverse=True))
