"""Host-side planning: the state of a row, its part in the next step, and all rows' parts packed for the device.

    RowState -> RowStep        what one row does next: positions, guidance, number of diffusion steps
    RowSteps -> StepPlan       the same for all rows, one entry per token to decide

A step launches hundreds of kernels, and waiting for one of them would leave a GPU idle. So everything a step needs is
planned on the CPU and sent in four transfers, and nothing is read back.

Letters, in addition to those of model/config.py: B rows in the step, M tokens that they decide, G tokens of guided rows
among them, U guided rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fluid_kernels.head_loop import Rows
from fluid_kernels.transfers import send
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
    kept: Tensor | None = None  # (N,) bool, tokens that were known from the start
    step: int = 0  # steps done
    reported: bool = False  # as finished, by Engine.step

    @classmethod
    def start(
        cls, request: RowRequest, conditions: tuple[Condition, Condition], order: Tensor, known: KnownTokens | None
    ) -> RowState:
        """Make a row before its first step; known tokens are taken out of its order (N,).

        Args:
            conditions: the prompt's, and the one that guidance leads away from.

        Raises:
            EngineError: there are more steps than tokens to decide.
        """
        if known is None:
            return cls(request, *conditions, order)
        rest = order[~known.kept.to(order.device)[order]]  # (n,)
        steps = request.sampling.num_inference_steps
        if steps > len(rest):
            raise EngineError(
                f"num_inference_steps is {steps}, but only {len(rest)} tokens are left to "
                f"generate and each step generates at least one: ask for 1 to {len(rest)}, or for a larger part of "
                "the image"
            )
        return cls(request, *conditions, rest, known.kept)

    @property
    def finished(self) -> bool:
        return self.step == self.request.sampling.num_inference_steps

    @property
    def masked(self) -> int:
        """Number of tokens that are not decided yet."""
        return masked_after(self.step - 1, self.request.sampling.num_inference_steps, len(self.order))

    def next_step(self, slot: int, total: int) -> RowStep:
        """The row's part in its next step.

        Args:
            slot: the row's place in the engine.
            total: N, the tokens of an image.
        """
        sampling, steps = self.request.sampling, self.request.sampling.num_inference_steps
        before, after = self.masked, masked_after(self.step, steps, len(self.order))
        low, high = sampling.guidance_interval
        inside = low <= self.step / steps < high
        guidance = guidance_at(sampling.guidance_scale, sampling.guidance_schedule, after, total) if inside else 1.0
        first, final = sampling.diffusion_steps, sampling.diffusion_steps_final
        return RowStep(
            slot=slot,
            seed=self.request.seed,
            condition=self.condition,
            unconditional=self.unconditional,
            known=total - before,
            positions=self.order[after:before],
            guidance=guidance,
            temperature=sampling.temperature,
            diffusion_steps=annealed(first, first if final is None else final, self.step, steps),
        )


@dataclass(frozen=True)
class RowStep:
    """One row's part in one step."""

    slot: int  # the row's place in the engine's tensors
    seed: int
    condition: Condition  # of one row
    unconditional: Condition  # of one row
    known: int  # number of tokens decided before the step
    positions: Tensor  # (m,) int64, the tokens that it decides
    guidance: float
    temperature: float
    diffusion_steps: int

    @property
    def guided(self) -> bool:
        """True if the row needs an unconditional z beside its own; a scale of 1 means no guidance."""
        return self.guidance != 1


@dataclass(frozen=True)
class StepPlan:
    """One step as packed tokens, one entry per token, rows one after the other."""

    lengths: tuple[int, ...]  # the distinct numbers of diffusion steps, longest first
    chain: Tensor  # (M,) int64, index into `lengths`
    seed: Tensor  # (M,) int64, of the token's row
    slot: Tensor  # (M,) int64, the token's row in the engine's tensors
    position: Tensor  # (M,) int64, the token's place in that row, 0 to N - 1
    guidance: Tensor  # (M,) float32
    temperature: Tensor  # (M,) float32
    guided: Tensor  # (G,) int64, ascending: the entries that need an unconditional z too
    z_row: Tensor  # (M + G,) int64, the row of z that each entry reads, then each guided entry's unconditional one
    z_position: Tensor  # (M + G,) int64, the position in that row
    host: tuple[list[int], list[int]]  # `chain` and `guided` again, for the head's loop

    @classmethod
    def pack(cls, steps: Sequence[RowStep]) -> StepPlan:
        """Expand the values of each row to the tokens that the row decides.

        Args:
            steps: B rows, those with the most diffusion steps first, as the head's loop expects. The plan reads z
                (B + U, N, D): these rows in this order, then the unconditional halves of the guided ones.
        """
        lengths = sorted({step.diffusion_steps for step in steps}, reverse=True)
        integers = torch.tensor([[lengths.index(s.diffusion_steps), s.seed, s.slot] for s in steps])  # (B, 3)
        floats = torch.tensor([[s.guidance, s.temperature] for s in steps], dtype=torch.float32)  # (B, 2)
        row_guided = torch.tensor([s.guided for s in steps])  # (B,) bool
        null_row = len(steps) - 1 + row_guided.cumsum(0)  # (B,) the unconditional row of z; for guided rows only

        counts = torch.tensor([len(s.positions) for s in steps])  # (B,)
        owner = torch.arange(len(steps)).repeat_interleave(counts)  # (M,) which of the steps a token belongs to
        position = torch.cat([s.positions for s in steps])  # (M,)
        guided = row_guided[owner].nonzero()[:, 0]  # (G,)
        chain, seed, slot = integers[owner].unbind(1)  # (M,) each
        guidance, temperature = floats[owner].unbind(1)  # (M,) each
        return cls(
            lengths=tuple(lengths),
            chain=chain,
            seed=seed,
            slot=slot,
            position=position,
            guidance=guidance,
            temperature=temperature,
            guided=guided,
            z_row=torch.cat([owner, null_row[owner[guided]]]),
            z_position=torch.cat([position, position[guided]]),
            host=(chain.tolist(), guided.tolist()),
        )

    def to(self, device: torch.device) -> StepPlan:
        """Copy the plan to a device, in four transfers without waiting."""
        chain, seed, slot, position = send(torch.stack([self.chain, self.seed, self.slot, self.position]), device)
        guidance, temperature = send(torch.stack([self.guidance, self.temperature]), device)
        z_row, z_position = send(torch.stack([self.z_row, self.z_position]), device)
        return replace(
            self, chain=chain, seed=seed, slot=slot, position=position, guidance=guidance, temperature=temperature,
            guided=send(self.guided, device), z_row=z_row, z_position=z_position,
        )  # fmt: skip

    def head_rows(self, condition: Tensor) -> Rows:
        """The head loop's input. condition: (M + G, W), the embedded z[z_row, z_position]."""
        return Rows(
            condition=condition, guided=self.guided, chain=self.chain, guidance=self.guidance,
            temperature=self.temperature, seed=self.seed, position=self.position, host=self.host,
        )  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """A half-decoded image: enough to resume it anywhere that has the same checkpoint."""

    request: RowRequest
    step: int  # steps done
    tokens: Tensor  # (N, C) on the CPU; undecided ones are zero
    kept: Tensor | None = None  # (N,) bool, tokens that were known from the start
