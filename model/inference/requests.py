"""A row's request, and the check that a model can decode it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, get_type_hints

from fluid_kernels.head_loop import TRAIN_STEPS
from model.config import ConfigError, ModelConfig
from model.inference.orders import orders_of
from model.sampling_presets import sampling_limits
from model.tokenizer_config import fits, type_name

QUALITIES = ("low", "medium", "high")  # the presets that requests choose from


@dataclass(frozen=True)
class SamplingFields(Protocol):
    """The sampling parameters; any object with these attributes will do, such as the service's own."""

    num_inference_steps: int = 16  # autoregressive steps
    diffusion_steps: int = 25  # kept timesteps of the head's chain
    guidance_scale: float = 3.0  # 1: no guidance
    guidance_schedule: str = "constant"  # or "linear": from 1 up to guidance_scale
    temperature: float = 1.0
    order: str = "random"  # see orders.orders_of
    diffusion_steps_final: int | None = None  # of the last AR step, annealed linearly; None: no change
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # share of the AR steps in which guidance acts
    top_k: int | None = None  # discrete tokens: sample from the k likeliest; None: from all
    top_p: float | None = None  # discrete tokens: sample from the likeliest with this share of the probability


@dataclass(frozen=True)
class Sampling(SamplingFields):
    """The plain dataclass that satisfies SamplingFields; it inherits every field."""


class RowRequest(Protocol):
    """Parameters of one row; any object with these attributes will do."""

    @property
    def prompt(self) -> str: ...
    @property
    def negative_prompt(self) -> str: ...  # what guidance steers away from; "": the unconditional branch
    @property
    def seed(self) -> int: ...
    @property
    def sampling(self) -> SamplingFields: ...


class KnownImage(Protocol):
    """An image that is kept in part; any object with these attributes will do."""

    @property
    def pixels(self) -> bytes: ...  # RGB or RGBA, height · width · 3 or 4
    @property
    def kept(self) -> bytes | int: ...  # N bytes, 1 where a token is kept; or a number of tokens: those decided first


class ServedRequest(RowRequest, Protocol):
    """A row request in pixels: it may start from an image."""

    @property
    def known(self) -> KnownImage | None: ...
    @property
    def transparent(self) -> bool: ...  # RGBA instead of RGB; for models with alpha


@dataclass(frozen=True, slots=True)
class Request:
    """The plain dataclass that satisfies ServedRequest."""

    prompt: str
    seed: int
    sampling: Sampling
    known: KnownImage | None = None
    negative_prompt: str = ""
    transparent: bool = False


class EngineError(ValueError):
    """A request that this engine cannot decode, or more rows than it has."""


def check_request(request: RowRequest, config: ModelConfig) -> None:
    """Check every parameter but the prompt, which the conditioner checks.

    Raises:
        EngineError: a parameter is outside the model's range; the message names it and the limit.
    """
    sampling = request.sampling
    if config.causal and sampling.num_inference_steps != config.tokens:
        raise EngineError(
            f"num_inference_steps is {sampling.num_inference_steps}; this model decodes its {config.tokens} tokens in "
            f"raster order, one a step, so it is always {config.tokens}"
        )
    if not 1 <= sampling.num_inference_steps <= config.tokens:
        raise EngineError(
            f"num_inference_steps is {sampling.num_inference_steps}; this model has {config.tokens} tokens "
            f"and decodes at least one a step, so 1 to {config.tokens}"
        )
    for name in ("diffusion_steps", "diffusion_steps_final"):
        steps = getattr(sampling, name)
        if steps is not None and not 1 <= steps <= TRAIN_STEPS:
            raise EngineError(f"{name} is {steps}; 1 to {TRAIN_STEPS} are possible")
    if sampling.guidance_schedule not in ("constant", "linear"):
        raise EngineError(f"guidance_schedule {sampling.guidance_schedule!r} is not constant or linear")
    if sampling.order not in orders_of(config):
        raise EngineError(f"order {sampling.order!r} is not {' or '.join(orders_of(config))}")
    _check_head(sampling, config)
    if not 0 <= sampling.guidance_interval[0] <= sampling.guidance_interval[1] <= 1:
        raise EngineError(f"guidance_interval {sampling.guidance_interval} is not two shares of the steps, 0 to 1")
    if not 0 <= request.seed < 1 << 63:
        raise EngineError(f"seed {request.seed} is outside 0 to 2**63 - 1")


def _check_head(sampling: SamplingFields, config: ModelConfig) -> None:
    """Check the parameters that only one kind of token head has."""
    if not config.categorical:
        for name in ("top_k", "top_p"):
            if getattr(sampling, name) is not None:
                raise EngineError(f"{name} is for discrete tokens, and this model's are continuous: leave it out")
        return
    if sampling.diffusion_steps != 1 or sampling.diffusion_steps_final not in (None, 1):
        raise EngineError(
            "this model's tokens are discrete, so there are no diffusion steps: diffusion_steps is always 1"
        )
    if sampling.top_k is not None and not 1 <= sampling.top_k <= config.codebook:
        raise EngineError(f"top_k is {sampling.top_k}; this model has {config.codebook} token values, so 1 to that")
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        raise EngineError(f"top_p is {sampling.top_p:g}; it is a share of the probability, above 0 and at most 1")


def read_sampling(raw: Any, config: ModelConfig) -> dict[str, Sampling]:
    """The settings of each preset, from presets and defaults as about.sampling of config.json holds them.

    Raises:
        ConfigError: a part is missing, of another type or beyond its limit, so that requests with defaults would fail.
    """
    presets, defaults = (raw.get(part) if isinstance(raw, dict) else None for part in ("presets", "defaults"))
    if not isinstance(presets, dict) or not isinstance(defaults, dict):
        raise ConfigError(f"sampling settings: {raw!r} is not an object with the objects 'presets' and 'defaults'")
    if missing := [name for name in QUALITIES if not isinstance(presets.get(name), dict)]:
        raise ConfigError(f"sampling settings: presets has no object {missing[0]!r}; there are {', '.join(QUALITIES)}")
    if defaults.get("quality") not in list(presets):
        raise ConfigError(f"sampling settings, defaults: quality {defaults.get('quality')!r} is none of the presets")
    defaults = {key: value for key, value in defaults.items() if key != "quality"}
    for name, settings in {"defaults": defaults, **presets}.items():
        _check_values(name, settings, sampling_limits(config))
    found = {name: Sampling(**{**defaults, **settings}) for name, settings in presets.items()}
    for name, sampling in found.items():
        try:
            check_request(Request("", 0, sampling), config)
        except EngineError as error:
            raise ConfigError(f"sampling settings, {name}: {error}") from error
    return found


def _check_values(name: str, settings: dict[str, Any], limits: dict[str, float]) -> None:
    """Check names, types and ranges; a number of steps or tokens is at least 1."""
    hints = get_type_hints(Sampling)
    for key, value in settings.items():
        if key not in hints:
            raise ConfigError(f"sampling settings, {name}: {key!r} is not known; there are {', '.join(hints)}")
        if not fits(value, hints[key]):
            raise ConfigError(f"sampling settings, {name}: {key} is {value!r}; {type_name(hints[key])} is expected")
        least = limits.get(f"min_{key}", 1 if "steps" in key or key == "top_k" else 0)
        most = limits.get(f"max_{key}")
        if value is not None and most is not None and not least <= value <= most:
            raise ConfigError(f"sampling settings, {name}: {key} is {value}, and the model takes {least:g} to {most:g}")
