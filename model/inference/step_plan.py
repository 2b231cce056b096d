"""What a step of the engine works on: rows, their part in a step, their snapshots."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from model.inference.known_tokens import Given
from model.inference.requests import EngineError, RowRequest
from model.networks.condition import Condition


@dataclass
class _Row:
    request: RowRequest
    condition: Condition  # one row
    order: Tensor  # (M,) tokens to decide: all N, or those not given. On the CPU, where steps are planned
    stays: Tensor | None = None  # (N,) bool, tokens that were given
    step: int = 0
    reported: bool = False  # as finished

    @property
    def finished(self) -> bool:
        return self.step == self.request.sampling.num_inference_steps


@dataclass(frozen=True)
class _Now:
    """A row's part in the step under way."""

    index: int
    request: RowRequest
    positions: Tensor  # the tokens it decides
    guidance: float  # 1: none
    diffusion_steps: int


@dataclass(frozen=True)
class Snapshot:
    """A half-decoded picture: enough to go on anywhere that has the same checkpoint. Undecided tokens are zero."""

    request: RowRequest
    step: int
    tokens: Tensor  # (N, C) on the CPU
    stays: Tensor | None = None  # (N,) bool, tokens that were given


def _start(request: RowRequest, condition: Condition, order: Tensor, given: Given | None) -> _Row:
    """A row before its first step; its order is walked over what was not given."""
    if given is None:
        return _Row(request, condition, order)
    rest = order[~given.stays.to(order.device)[order]]  # (M,)
    steps = request.sampling.num_inference_steps
    if steps > len(rest):
        raise EngineError(
            f"num_inference_steps is {steps}, but only {len(rest)} tokens are left to draw and "
            f"each step draws at least one: ask for 1 to {len(rest)}, or for a larger part of the picture"
        )
    return _Row(request, condition, rest, stays=given.stays)
