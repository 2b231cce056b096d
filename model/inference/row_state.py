"""The state of a row, and its part in the next step; step_plan.py packs those of all rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from model.inference.heads.categorical import choice_temperature
from model.inference.known_tokens import KnownTokens
from model.inference.orders import annealed, guidance_at, masked_after
from model.inference.requests import EngineError, RowRequest
from model.networks.condition import Condition


@dataclass
class RowState:
    """One image being decoded."""

    request: RowRequest
    condition: Condition  # of one row
    unconditional: Condition  # of one row, for the other half of guidance: a negative prompt's, or the empty prompt's
    order: Tensor  # (n,) int64 on the CPU, the tokens to decide, last ones first: all N, or those not kept
    unmasking: str  # of the model's config
    kept: Tensor | None = None  # (N,) bool, tokens that were known from the start
    step: int = 0  # steps done
    reported: bool = False  # as finished, by Engine.step
    cached: int = 0  # raster order: positions whose keys and values the engine holds

    @classmethod
    def start(
        cls, request: RowRequest, conditions: tuple[Condition, Condition], order: Tensor, known: KnownTokens | None,
        unmasking: str = "maskgit",
    ) -> RowState:  # fmt: skip
        """Make a row before its first step; known tokens are taken out of its order (N,).

        In raster order they stay in it: each is walked over in its own step, and those at the start need none.

        Args:
            conditions: the prompt's, and the one that guidance steers away from.

        Raises:
            EngineError: there are more steps than tokens to decide.
        """
        if known is None:
            return cls(request, *conditions, order, unmasking)
        if request.sampling.order == "raster":
            kept = known.kept.to(order.device)  # each step reads it on the host
            return cls(request, *conditions, order, unmasking, kept, step=int(kept.int().cumprod(0).sum()))
        rest = order[~known.kept.to(order.device)[order]]  # (n,)
        steps = request.sampling.num_inference_steps
        if steps > len(rest):
            raise EngineError(
                f"num_inference_steps is {steps}, but only {len(rest)} tokens are left to "
                f"generate and each step generates at least one: ask for 1 to {len(rest)}, or for a larger part of "
                "the image"
            )
        return cls(request, *conditions, rest, unmasking, known.kept)

    @property
    def finished(self) -> bool:
        return self.step == self.request.sampling.num_inference_steps

    @property
    def masked(self) -> int:
        """Number of tokens that are not decided yet."""
        return self._masked_after(self.step - 1)

    def _masked_after(self, step: int) -> int:
        sampling = self.request.sampling
        steps = sampling.num_inference_steps
        return masked_after(step, steps, len(self.order), sampling.order, self.unmasking)

    @property
    def total(self) -> int:
        """N, the tokens of an image."""
        return len(self.order) if self.kept is None else len(self.kept)

    def next_step(self, slot: int) -> RowStep:
        """The row's part in its next step. slot: the row's place in the engine."""
        total = self.total
        sampling, steps = self.request.sampling, self.request.sampling.num_inference_steps
        before, after = self.masked, self._masked_after(self.step)
        first, final = sampling.diffusion_steps, sampling.diffusion_steps_final
        raster, confident = sampling.order == "raster", sampling.order == "confidence"
        positions = torch.arange(before) if confident else self.order[after:before]
        if raster and self.kept is not None and self.kept[self.step]:
            positions = positions[:0]
        return RowStep(
            slot=slot,
            seed=self.request.seed,
            condition=self.condition,
            unconditional=self.unconditional,
            known=total - before,
            positions=positions,
            guidance=self._guidance(self.step),
            temperature=sampling.temperature,
            diffusion_steps=annealed(first, first if final is None else final, self.step, steps),
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            walk=self.step if raster else None,
            cached=self.cached,
            past_guided=raster and self.step <= self._last_guided,
            choice=self._choice(before - after) if confident else None,
            following=steps - 1 - self.step,
        )

    def _choice(self, count: int) -> Choice:
        """How `count` of the sampled tokens are chosen in the next step."""
        sampling = self.request.sampling
        steps = sampling.num_inference_steps
        scale = choice_temperature(sampling.temperature, self.step, steps, self.unmasking)
        return Choice(count, self.step, scale)

    @cached_property
    def _last_guided(self) -> int:
        """The last step with guidance; -1: none."""
        steps = self.request.sampling.num_inference_steps
        return max((step for step in range(steps) if self._guidance(step) != 1), default=-1)

    def _guidance(self, step: int) -> float:
        """Guidance scale of a step; 1 outside the interval."""
        sampling, steps = self.request.sampling, self.request.sampling.num_inference_steps
        low, high = sampling.guidance_interval
        if not low <= step / steps < high:
            return 1.0
        masked = self._masked_after(step)
        return guidance_at(sampling.guidance_scale, sampling.guidance_schedule, masked, self.total)


@dataclass(frozen=True)
class Choice:
    """A step of a row with the order "confidence": which of its sampled tokens are kept."""

    count: int
    step: int  # for the noise
    scale: float  # of the noise


@dataclass(frozen=True)
class RowStep:
    """One row's part in one step."""

    slot: int  # the row's place in the engine's tensors
    seed: int
    condition: Condition  # of one row
    unconditional: Condition  # of one row
    known: int  # number of tokens decided before the step
    positions: Tensor  # (m,) int64, the tokens that it samples; with a choice, ranks among the undecided ones
    guidance: float
    temperature: float
    diffusion_steps: int
    top_k: int | None = None
    top_p: float | None = None
    walk: int | None = None  # raster order: the position that it computes
    cached: int = 0  # raster order: positions before it whose keys and values are there
    past_guided: bool = False  # raster order: this step or a later one is guided
    choice: Choice | None = None  # with the order "confidence"
    following: int = 0  # steps after this one

    @property
    def guided(self) -> bool:
        """True if the row's tokens need an unconditional z beside their own; a scale of 1 means no guidance."""
        return self.guidance != 1

    @property
    def paired(self) -> bool:
        """True if the pass has an unconditional half for the row: in raster order, later steps attend to it too."""
        return self.guided or self.past_guided


@dataclass(frozen=True)
class Snapshot:
    """A half-decoded image: enough to resume it anywhere that has the same checkpoint."""

    request: RowRequest
    step: int  # steps done
    tokens: Tensor  # on the CPU: (N, C), undecided ones zero; or (N,) int64 if discrete, undecided ones -1
    kept: Tensor | None = None  # (N,) bool, tokens that were known from the start
