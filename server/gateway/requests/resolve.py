"""Resolve a request to a job: fill in every default from the model's metadata and check its limits."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from server.errors import InvalidRequest
from server.gateway.requests.class_labels import match_label
from server.gateway.schemas.images import IGNORED, MAX_SEED, ImageRequest
from server.jobs import JobInput
from server.model_info import ModelInfo


def resolve(request: ImageRequest, models: dict[str, ModelInfo], default: str) -> tuple[JobInput, list[str]]:
    """Return the fully specified job, and warnings about parameters that have no effect.

    Raises:
        InvalidRequest: the model does not exist, or cannot generate what the request asks for.
    """
    info = model_of(request, models, default)
    width, height = _size(request, info)
    quality: str = request.quality or "auto"
    if quality == "auto":
        quality = str(info.defaults.get("quality", "medium"))
    preset = info.presets[quality]
    n = request.n or 1
    job = JobInput(
        prompt=match_label(request.prompt, info.labels, info.id) if info.labels else request.prompt,
        model=info.id,
        n=n,
        width=width,
        height=height,
        quality=quality,
        output_format=request.output_format or "png",
        output_compression=100 if request.output_compression is None else request.output_compression,
        seed=_seed(request, n),
        num_inference_steps=request.num_inference_steps or preset["num_inference_steps"],
        diffusion_steps=request.diffusion_steps or preset["diffusion_steps"],
        guidance_scale=_value_or(request.guidance_scale, info.defaults["guidance_scale"]),
        guidance_schedule=request.guidance_schedule or str(info.defaults["guidance_schedule"]),
        temperature=_value_or(request.temperature, info.defaults["temperature"]),
        user=request.user,
        priority=request.priority or "normal",
        deadline_ms=request.deadline_ms,
        diffusion_steps_final=_diffusion_steps_final(request, preset),
        order=request.order or str(preset.get("order", "random")),
        guidance_interval=_guidance_interval(request, preset),
        partial_images=request.partial_images or 0,
        webhook=request.webhook or "",
    )
    if job.output_format == "png" and job.output_compression < 100:  # OpenAI rejects it too
        raise InvalidRequest(
            f"'output_compression' {job.output_compression} is for webp and jpeg; png is lossless. Leave it out, or "
            "set 'output_format'.",
            param="output_compression",
        )
    _check_limits(job, info)
    return job, _warnings(request)


def _value_or(value: float | None, default: Any) -> float:
    """0 is a valid value, so `or` will not do."""
    return float(default if value is None else value)


def _diffusion_steps_final(request: ImageRequest, preset: Mapping[str, Any]) -> int | None:
    """A preset's annealing fits only its own number of diffusion steps; another number applies to every step."""
    if request.diffusion_steps_final is not None or request.diffusion_steps is not None:
        return request.diffusion_steps_final
    return preset.get("diffusion_steps_final")


def _guidance_interval(request: ImageRequest, preset: Mapping[str, Any]) -> tuple[float, float]:
    low, high = request.guidance_interval or preset.get("guidance_interval", (0.0, 1.0))
    return float(low), float(high)


def model_of(request: ImageRequest, models: dict[str, ModelInfo], default: str) -> ModelInfo:
    """Return the model that the request names, or the default.

    Raises:
        InvalidRequest: no such model is known.
    """
    name = request.model or default
    if name not in models:
        valid = ", ".join(sorted(models))
        raise InvalidRequest(f"'model' {name[:100]!r} is not served here. Served: {valid}.", param="model")
    return models[name]


def _size(request: ImageRequest, info: ModelInfo) -> tuple[int, int]:
    width, height = info.image_size
    if request.size not in (None, "auto", f"{width}x{height}"):
        raise InvalidRequest(
            f"'size' {request.size} is not supported by {info.id}; use {width}x{height} or auto.",
            param="size",
        )
    return width, height


def _seed(request: ImageRequest, n: int) -> int:
    """Return the requested seed, or a random one small enough that JavaScript can send it back exactly."""
    if request.seed is None:
        return secrets.randbelow(2**32)
    if request.seed + n - 1 > MAX_SEED:
        raise InvalidRequest(f"'seed' + n - 1 must be at most {MAX_SEED}.", param="seed")
    return request.seed


def _check_limits(job: JobInput, info: ModelInfo) -> None:
    """Check the job against every `max_<parameter>` and `min_<parameter>` that the model publishes."""
    for name, value in asdict(job).items():
        high, low = info.limits.get(f"max_{name}"), info.limits.get(f"min_{name}")
        if value is None:
            continue
        if high is not None and value > high:
            raise InvalidRequest(f"'{name}' must be at most {high:g} for {info.id}, not {value}.", param=name)
        if low is not None and value < low:
            raise InvalidRequest(f"'{name}' must be at least {low:g} for {info.id}, not {value}.", param=name)


def _warnings(request: ImageRequest) -> list[str]:
    given = [name for name in IGNORED if getattr(request, name) not in (None, "auto")]
    return [f"'{name}' has no effect here." for name in given]
