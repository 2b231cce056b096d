"""The image request with its limits, descriptions and examples."""

import hashlib
import re
from typing import Annotated, Literal

from fastapi.openapi.models import Example
from pydantic import ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from server.gateway.schemas.strict import StrictRequest

MAX_PROMPT_CHARS = 2000
MAX_IMAGES = 10
MAX_SEED = 2**63 - 1
MAX_DEADLINE_MS = 7 * 86_400_000
MAX_PARTIAL_IMAGES = 3
#: Parameters of OpenAI's models that mean nothing here: accepted, with a note in `warnings`.
IGNORED = ("moderation", "style", "input_fidelity")  # the last one of edits only

OutputFormat = Literal["png", "webp", "jpeg"]
Quality = Literal["low", "medium", "high", "auto", "standard", "hd"]
EXAMPLES: dict[str, Example] = {
    "minimal": {"summary": "A prompt is enough", "value": {"prompt": "a red apple, 3d style"}},
    "reproducible": {
        "summary": "Three images that can be generated again",
        "value": {"prompt": "a sleeping cat", "n": 3, "seed": 7, "quality": "high", "output_format": "webp"},
    },
    "all sampling parameters": {
        "summary": "Every sampling parameter",
        "value": {
            "prompt": "a rocket, flat style", "seed": 7, "num_inference_steps": 16, "diffusion_steps": 25,
            "guidance_scale": 3.0, "guidance_schedule": "linear", "temperature": 1.0, "order": "halton",
            "diffusion_steps_final": 12, "guidance_interval": [0.0, 0.8],
        },
    },
}  # fmt: skip


class ImageRequest(StrictRequest):
    """A request for images: OpenAI's fields, and this service's own (seed, steps, guidance, temperature, ...)."""

    model_config = ConfigDict(json_schema_extra={"examples": [each["value"] for each in EXAMPLES.values()]})

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS, description="What to generate.")]
    negative_prompt: Annotated[
        str | None, Field(max_length=MAX_PROMPT_CHARS, description="What to avoid; acts by a guidance_scale above 1.")
    ] = None
    model: Annotated[
        str | None,
        Field(description="An id of GET /v1/models or an alias of the operator's; the served model if omitted."),
    ] = None
    n: Annotated[
        int | None, Field(ge=1, le=MAX_IMAGES, description="Number of images. Image i uses seed + i; 1 if omitted.")
    ] = None
    size: Annotated[
        str | None,
        Field(
            description='"auto", or the size of the model as "WIDTHxHEIGHT"; others by FLUID_SIZE_POLICY.',
            examples=["auto", "128x128"],
        ),
    ] = None
    quality: Annotated[
        Quality | None,
        Field(
            description="Preset for the sampling parameters. GET /v1/models lists the presets; auto is the "
            "default. OpenAI's standard is medium and hd is high."
        ),
    ] = None
    output_format: Annotated[
        OutputFormat | None, Field(description="File format; what the Accept header asks for if omitted, else png.")
    ] = None
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="Quality of webp and jpeg, 100 is best. png is lossless.")
    ] = None
    response_format: Annotated[
        Literal["b64_json", "url"] | None,
        Field(
            description="Base64 or links; if omitted, FLUID_RESPONSE_FORMAT, but base64 in streams and for gpt-image."
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_SEED,
            description="The same seed and parameters give the same image. Chosen at random if omitted.",
        ),
    ] = None
    num_inference_steps: Annotated[
        int | None,
        Field(ge=1, description="Autoregressive steps per image; more take longer. Overrides the preset."),
    ] = None
    diffusion_steps: Annotated[
        int | None, Field(ge=1, description="Diffusion steps per token; more take longer. Overrides the preset.")
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Strength of classifier-free guidance: how closely images follow the prompt. 1 is no guidance.",
        ),
    ] = None
    guidance_schedule: Annotated[
        Literal["linear", "constant"] | None,
        Field(description="How guidance changes over the steps: it rises linearly, or stays constant."),
    ] = None
    temperature: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Scale of the sampling noise: lower is less varied."),
    ] = None
    diffusion_steps_final: Annotated[
        int | None,
        Field(
            ge=1,
            description="Diffusion steps per token in the last autoregressive step; the number changes linearly from "
            "`diffusion_steps`.",
        ),
    ] = None
    order: Annotated[
        Literal["random", "halton", "gtr", "confidence", "raster"] | None,
        Field(
            description="Order in which tokens are generated: uniformly random, spread out (Halton sequence), one "
            "colour of a checkerboard slowly and the other in the last steps (gtr), the most confident first (models "
            "of discrete tokens), or row by row, which models of that order have only. "
            "`orders` in GET /v1/models lists the model's."
        ),
    ] = None
    top_k: Annotated[
        int | None, Field(ge=1, description="Models of discrete tokens: sample each token from the k likeliest values.")
    ] = None
    top_p: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Models of discrete tokens: sample from the likeliest values with this share of the "
            "probability.",
        ),
    ] = None
    guidance_interval: Annotated[
        list[Annotated[float, Field(ge=0, le=1)]] | None,
        Field(
            min_length=2,
            max_length=2,
            description="Begin and end of guidance as fractions of the steps, for example [0.2, 0.8].",
        ),
    ] = None
    user: Annotated[
        str | None,
        Field(
            max_length=256,
            description="Your own label for an end user, kept with the job. Users share the service fairly.",
        ),
    ] = None
    priority: Annotated[
        Literal["high", "normal", "low"] | None,
        Field(description="Priority class in the queue; normal if omitted. Jobs that wait long move up."),
    ] = None
    deadline_ms: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_DEADLINE_MS,
            description="Milliseconds after acceptance at which to give up: 504, or a job that ends as aborted.",
        ),
    ] = None
    stream: Annotated[
        bool | None,
        Field(description="Respond with server-sent events. For a job, use GET /v1/jobs/{id}/events instead."),
    ] = None
    partial_images: Annotated[
        int | None,
        Field(ge=0, le=MAX_PARTIAL_IMAGES, description="Previews of each image while it is decoded, sent as events."),
    ] = None
    webhook: Annotated[
        str | None,
        Field(max_length=2000, description="An http(s) URL that gets a signed POST when the job ends. Jobs only."),
    ] = None
    background: Annotated[
        Literal["auto", "opaque", "transparent"] | None,
        Field(
            description="transparent for an image with alpha: png or webp of a model whose `transparent` is true in "
            "GET /v1/models; other models generate an opaque one, with a warning. auto is opaque."
        ),
    ] = None
    moderation: Annotated[str | None, Field(description="Accepted for OpenAI clients; no effect.")] = None
    style: Annotated[
        str | None, Field(description="Accepted for OpenAI clients; no effect. Put the style into the prompt.")
    ] = None

    def fingerprint(self) -> str:
        """Hash the request, except `stream` and `response_format`, to recognize a reused Idempotency-Key.

        The resolved job would not do: a seed that the caller omitted is different each time.
        """
        text = self.model_dump_json(exclude_none=True, exclude={"stream", "response_format"})
        return hashlib.sha256(text.encode()).hexdigest()

    @field_validator("prompt")
    @classmethod
    def _prompt_is_not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise PydanticCustomError("empty_prompt", "must not be blank; say what to generate")
        return prompt

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _fits_into_metadata(cls, text: str | None) -> str | None:
        if text is not None and "\0" in text:  # it terminates a field of PNG metadata, which could not carry the text
            raise PydanticCustomError("null_character", "contains a null character (U+0000); leave it out")
        return text

    @field_validator("negative_prompt")
    @classmethod
    def _blank_is_none(cls, text: str | None) -> str | None:
        """A blank negative prompt asks for the default behaviour."""
        return text if text and text.strip() else None

    @field_validator("guidance_interval")
    @classmethod
    def _interval_is_ordered(cls, interval: list[float] | None) -> list[float] | None:
        if interval is not None and interval[0] > interval[1]:
            raise PydanticCustomError("bad_interval", "must begin before it ends, for example [0.2, 0.8]")
        return interval

    @field_validator("size")
    @classmethod
    def _size_is_well_formed(cls, size: str | None) -> str | None:
        if size is not None and size != "auto" and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", size):
            raise PydanticCustomError("bad_size", 'must be "auto" or "WIDTHxHEIGHT", for example "128x128"')
        return size
