"""Resolve a request to a job: fill in every default from the model's metadata and check its limits."""

import secrets
from typing import Any

from server.errors import InvalidRequest, NoWorkers, UnknownModel
from server.gateway.requests.class_labels import match_label
from server.gateway.requests.client_mapping import NO_MAPPING, QUALITY_ALIASES, ClientMapping
from server.gateway.requests.vocabulary.warnings import prompt_warnings
from server.gateway.schemas.images import IGNORED, MAX_SEED, ImageRequest
from server.jobs import JobInput
from server.model_info import ModelInfo
from server.sampling import SAMPLING_FIELDS, Sampling

NEGATIVE_GUIDANCE = 1.5  # guidance scale of a negative prompt, where neither request nor preset has guidance


def resolve(
    request: ImageRequest, models: dict[str, ModelInfo], default: str, mapping: ClientMapping = NO_MAPPING
) -> tuple[JobInput, list[str]]:
    """Return the fully specified job, and warnings about parameters that were mapped or have no effect.

    Raises:
        UnknownModel, NoWorkers: see `model_of`. InvalidRequest: the model cannot generate what the request asks for.
    """
    info = model_of(request, models, default, mapping)
    job = job_of(request, info, mapping)
    return job, warnings_about(request, info, job)


def job_of(request: ImageRequest, info: ModelInfo, mapping: ClientMapping = NO_MAPPING) -> JobInput:
    """Return the fully specified job. Raises InvalidRequest: the model cannot generate what the request asks for."""
    width, height = _size(request, info, mapping)
    quality = quality_of(request, info)
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
        sampling=Sampling.from_mapping(
            {**info.defaults, **preset, **_given_sampling(request), **_steering(request, info)}
        ),
        user=request.user,
        priority=request.priority or "normal",
        deadline_ms=request.deadline_ms,
        partial_images=request.partial_images or 0,
        webhook=request.webhook or "",
        negative_prompt=request.negative_prompt or "",
        background="transparent" if wants_alpha(request, info) else "opaque",
    )
    if request.background == "transparent" and job.output_format == "jpeg":  # even if the model has no alpha
        raise InvalidRequest(
            "'background' transparent needs the 'output_format' png or webp; jpeg has no transparency.",
            param="output_format",
        )
    if job.output_format == "png" and job.output_compression < 100:  # OpenAI rejects it too
        raise InvalidRequest(
            f"'output_compression' {job.output_compression} is for webp and jpeg; png is lossless. Leave it out, or "
            "set 'output_format'.",
            param="output_compression",
        )
    _check_limits(job, info)
    _check_system(job, info)
    _check_negative_prompt(job, info)
    return job


def quality_of(request: ImageRequest, info: ModelInfo) -> str:
    """The preset of a request: as it says, under our name for it, or the model's default."""
    quality: str = request.quality or "auto"
    quality = QUALITY_ALIASES.get(quality, quality)
    return str(info.defaults.get("quality", "medium")) if quality == "auto" else quality


def wants_alpha(request: ImageRequest, info: ModelInfo) -> bool:
    """True if the request asks for a transparent background and the model has one."""
    return request.background == "transparent" and info.transparent


def _given_sampling(request: ImageRequest) -> dict[str, Any]:
    """The sampling parameters that the request sets itself, which override those of the preset.

    A preset's final diffusion steps belong to its own number of steps; other numbers are used throughout.
    """
    given = {name: value for name in SAMPLING_FIELDS if (value := getattr(request, name)) is not None}
    if "diffusion_steps" in given:
        given.setdefault("diffusion_steps_final", None)
    return given


def _steering(request: ImageRequest, info: ModelInfo) -> dict[str, float]:
    """The guidance scale of a negative prompt at a quality without guidance, through which alone it can act."""
    if not request.negative_prompt or request.guidance_scale is not None:
        return {}
    preset = {**info.defaults, **info.presets[quality_of(request, info)]}
    return {"guidance_scale": NEGATIVE_GUIDANCE} if preset.get("guidance_scale") == 1 else {}


def model_of(
    request: ImageRequest, models: dict[str, ModelInfo], default: str, mapping: ClientMapping = NO_MAPPING
) -> ModelInfo:
    """Return the model that the request names by its id or by an alias, or the default.

    Raises:
        UnknownModel: no worker has ever published it. NoWorkers: the same of the default.
    """
    name = request.model or default
    target = name if name in models else mapping.aliases.get(name, name)
    if target not in models:
        alias, served = f", an alias of {target}," if target != name else "", ", ".join(sorted(models))
        if not request.model:
            raise NoWorkers(
                f"No worker has loaded {name!r}{alias} yet, the model of requests that name none "
                f"(FLUID_DEFAULT_MODEL). Wait for it, or set 'model' to one of: {served}.",
                retry_after_s=5,
            )
        raise UnknownModel(
            f"'model' {name[:100]!r}{alias} is not served here. Served: {served}. The operator can map names with "
            f"FLUID_MODEL_ALIASES=NAME={default}.",
            param="model",
        )
    return models[target]


def _size(request: ImageRequest, info: ModelInfo, mapping: ClientMapping) -> tuple[int, int]:
    """Return the model's only size, which is also the nearest to any other."""
    width, height = info.image_size
    if request.size not in (None, "auto", f"{width}x{height}") and not mapping.nearest_size:
        raise InvalidRequest(
            f"'size' {request.size} is not supported by {info.id}; use {width}x{height} or auto. The operator can "
            "allow every size with FLUID_SIZE_POLICY=nearest.",
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
    for name, value in job.parameters().items():
        high, low = info.limits.get(f"max_{name}"), info.limits.get(f"min_{name}")
        if not isinstance(value, int | float):  # a newer version's model may limit more
            continue
        if info.has_fixed(name) and value != high:
            raise InvalidRequest(f"'{name}' is always {high:g} for {info.id}, not {value}. Leave it out.", param=name)
        if high is not None and value > high:
            raise InvalidRequest(f"'{name}' must be at most {high:g} for {info.id}, not {value}.", param=name)
        if low is not None and value < low:
            raise InvalidRequest(f"'{name}' must be at least {low:g} for {info.id}, not {value}.", param=name)


def _check_system(job: JobInput, info: ModelInfo) -> None:
    """Refuse an order that the model has not, and the sampling of discrete tokens where they are continuous."""
    if job.sampling.order not in info.orders:
        raise InvalidRequest(
            f"'order' must be {' or '.join(info.orders)} for {info.id}, not {job.sampling.order}.", param="order"
        )
    for name in ("top_k", "top_p"):
        if getattr(job.sampling, name) is not None and not info.discrete:
            raise InvalidRequest(
                f"'{name}' is for models of discrete tokens; those of {info.id} are continuous. Leave it out.",
                param=name,
            )


def _check_negative_prompt(job: JobInput, info: ModelInfo) -> None:
    """Refuse a negative prompt that the model does not have, or that would act as a prompt."""
    if not job.negative_prompt:
        return
    if info.labels:
        raise InvalidRequest(
            f"'negative_prompt' is not possible with {info.id}: it is conditioned on class labels, and its guidance "
            "steers away from a learned 'no class', not from a text. Leave it out.",
            param="negative_prompt",
        )
    if not info.negative_prompts:
        raise InvalidRequest(
            f"'negative_prompt' is not possible with {info.id}: its guidance steers away from a learned branch for no "
            "prompt, not from a text. Leave it out.",
            param="negative_prompt",
        )
    if job.sampling.guidance_scale < 1:
        raise InvalidRequest(
            f"'negative_prompt' with a 'guidance_scale' of {job.sampling.guidance_scale:g} would lead towards it "
            "instead of away. Use a 'guidance_scale' above 1, or leave 'negative_prompt' out.",
            param="negative_prompt",
        )


def _is_guided(sampling: Sampling) -> bool:
    """True if guidance acts in any step; a step i of S is guided if i / S is inside the interval."""
    (low, high), steps = sampling.guidance_interval, sampling.num_inference_steps
    return sampling.guidance_scale != 1 and any(low <= i / steps < high for i in range(steps))


def warnings_about(request: ImageRequest, info: ModelInfo, job: JobInput) -> list[str]:
    """Tell what was mapped to something else, what has no effect, and which words the model does not know."""
    warnings = []
    if request.model and request.model != info.id:
        warnings.append(f"'model' {request.model[:100]} is {info.id} here.")
    if request.size not in (None, "auto", f"{job.width}x{job.height}"):
        warnings.append(f"'size' {request.size} became {job.width}x{job.height}, the nearest size of {info.id}.")
    if request.quality in QUALITY_ALIASES:
        warnings.append(f"'quality' {request.quality} is {job.quality} here.")
    given = [name for name in IGNORED if getattr(request, name, None) not in (None, "auto")]
    if request.background == "transparent" and job.background != "transparent":
        warnings.append(f"'background' transparent became {job.background}: {info.id} generates no alpha.")
    warnings += [f"'{name}' has no effect here." for name in given]
    steps = job.sampling.num_inference_steps
    if request.num_inference_steps not in (None, steps):  # of an edit or a variation
        warnings.append(f"'num_inference_steps' was reduced to {steps}, the number of tokens to generate.")
    if _steering(request, info):
        warnings.append(
            f"'guidance_scale' became {NEGATIVE_GUIDANCE:g}: a 'negative_prompt' acts through guidance, and quality "
            f"{job.quality} of {info.id} has none."
        )
    if job.negative_prompt and not _is_guided(job.sampling):
        warnings.append(
            "'negative_prompt' has no effect without guidance: 'guidance_scale' is 1, or no step is in "
            "'guidance_interval'."
        )
    warnings += prompt_warnings(request.prompt, info)
    return warnings + prompt_warnings(job.negative_prompt, info, "negative_prompt")
