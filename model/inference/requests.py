"""A row's request, and the check that a model can decode it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fluid_kernels.head_loop import TRAIN_STEPS
from model.config import ModelConfig


class RowRequest(Protocol):
    """Parameters of one row; any object with these attributes will do."""

    @property
    def prompt(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def num_inference_steps(self) -> int: ...
    @property
    def diffusion_steps(self) -> int: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def guidance_schedule(self) -> str: ...
    @property
    def temperature(self) -> float: ...
    @property
    def order(self) -> str: ...
    @property
    def diffusion_steps_final(self) -> int | None: ...
    @property
    def guidance_interval(self) -> tuple[float, float]: ...


class Known(Protocol):
    """An image of which a part is kept; any object with these attributes will do."""

    @property
    def pixels(self) -> bytes: ...  # RGB, height · width · 3
    @property
    def stays(self) -> bytes | int: ...  # N bytes, 1 where a token is kept; or how many: those decided first


class ServedRequest(RowRequest, Protocol):
    """A row request in pixels: it may start from an image."""

    @property
    def known(self) -> Known | None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """The plain dataclass that satisfies ServedRequest."""

    prompt: str
    seed: int
    num_inference_steps: int
    diffusion_steps: int
    guidance_scale: float
    guidance_schedule: str
    temperature: float
    order: str = "random"
    diffusion_steps_final: int | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    known: Known | None = None


class EngineError(ValueError):
    """A request that this engine cannot decode, or more rows than it has."""


def check_request(request: RowRequest, config: ModelConfig) -> None:
    """Check every parameter but the prompt, which the conditioner checks.

    Raises:
        EngineError: a parameter is outside the model's range; the message names it and the limit.
    """
    if not 1 <= request.num_inference_steps <= config.tokens:
        raise EngineError(
            f"num_inference_steps is {request.num_inference_steps}; this model has {config.tokens} tokens "
            f"and decodes at least one a step, so 1 to {config.tokens}"
        )
    for name in ("diffusion_steps", "diffusion_steps_final"):
        steps = getattr(request, name)
        if steps is not None and not 1 <= steps <= TRAIN_STEPS:
            raise EngineError(f"{name} is {steps}; 1 to {TRAIN_STEPS} are possible")
    if request.guidance_schedule not in ("constant", "linear"):
        raise EngineError(f"guidance_schedule {request.guidance_schedule!r} is not constant or linear")
    if request.order not in ("random", "halton"):
        raise EngineError(f"order {request.order!r} is not random or halton")
    if not 0 <= request.guidance_interval[0] <= request.guidance_interval[1] <= 1:
        raise EngineError(f"guidance_interval {request.guidance_interval} is not two shares of the steps, 0 to 1")
    if not 0 <= request.seed < 1 << 63:
        raise EngineError(f"seed {request.seed} is outside 0 to 2**63 - 1")
