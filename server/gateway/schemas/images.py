"""The HTTP contract: request and response models with their limits, descriptions and examples."""

import difflib
import hashlib
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.gateway.schemas.jobs import Metrics

MAX_PROMPT_CHARS = 2000
MAX_IMAGES = 10
MAX_SEED = 2**63 - 1
MAX_DEADLINE_MS = 7 * 86_400_000
NOT_YET = ("negative_prompt",)
MAX_PARTIAL_IMAGES = 3
#: Parameters of OpenAI's models that mean nothing here; taken, and said so in `warnings`.
IGNORED = ("background", "moderation", "style")

OutputFormat = Literal["png", "webp", "jpeg"]
Quality = Literal["low", "medium", "high", "auto"]


class ImageRequest(BaseModel):
    """A request for pictures: OpenAI's fields, and ours (seed, steps, guidance, temperature)."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "a red apple, 3d style"},
                {"prompt": "a sleeping cat", "n": 3, "seed": 7, "quality": "high", "output_format": "webp"},
            ]
        },
    )

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS, description="What to draw.")]
    model: Annotated[str | None, Field(description="A model id of GET /v1/models; omit for the one served.")] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_IMAGES, description="How many pictures; picture i uses seed + i.")] = (
        None
    )
    size: Annotated[
        str | None,
        Field(description='"auto", or the model\'s own size as "WxH".', examples=["auto", "128x128"]),
    ] = None
    quality: Annotated[
        Quality | None, Field(description="A preset of the two step counts, listed in GET /v1/models.")
    ] = None
    output_format: Annotated[
        OutputFormat | None, Field(description="File format; if omitted what Accept asks for, else png.")
    ] = None
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="webp and jpeg quality; 100 is best. png is lossless.")
    ] = None
    response_format: Annotated[
        Literal["b64_json", "url"] | None,
        Field(description="Picture inside the answer, or a link. b64_json if omitted."),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=0, le=MAX_SEED, description="Same seed and parameters, same picture. Drawn if omitted."),
    ] = None
    num_inference_steps: Annotated[
        int | None, Field(ge=1, description="Autoregressive steps; overrides the preset.")
    ] = None
    diffusion_steps: Annotated[
        int | None, Field(ge=1, description="Diffusion steps per token; overrides the preset.")
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="How hard the prompt pulls; 1 is no guidance."),
    ] = None
    guidance_schedule: Annotated[
        Literal["linear", "constant"] | None,
        Field(description="Guidance over the steps: rising, or the same."),
    ] = None
    temperature: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Spread of the sampling; lower is tamer.")
    ] = None
    diffusion_steps_final: Annotated[
        int | None,
        Field(ge=1, description="Diffusion steps of the last autoregressive step, reached in a straight line."),
    ] = None
    order: Annotated[
        Literal["random", "halton"] | None,
        Field(description="In which order tokens are decided: uniform at random, or far apart from each other."),
    ] = None
    guidance_interval: Annotated[
        list[Annotated[float, Field(ge=0, le=1)]] | None,
        Field(min_length=2, max_length=2, description="Shares of the steps between which guidance acts."),
    ] = None
    user: Annotated[
        str | None,
        Field(max_length=256, description="Your own label, kept with the job; users share the service fairly."),
    ] = None
    priority: Annotated[
        Literal["high", "normal", "low"] | None,
        Field(description="Which line to stand in; normal if omitted. Who waits long goes up."),
    ] = None
    deadline_ms: Annotated[
        int | None,
        Field(ge=1, le=MAX_DEADLINE_MS, description="Give up this long after acceptance: 504, or a job aborted."),
    ] = None
    stream: Annotated[
        bool | None, Field(description="Answer with server-sent events. Jobs have GET /v1/jobs/{id}/events instead.")
    ] = None
    partial_images: Annotated[
        int | None,
        Field(ge=0, le=MAX_PARTIAL_IMAGES, description="Previews of each picture while it is decoded, as events."),
    ] = None
    webhook: Annotated[
        str | None,
        Field(max_length=2000, description="Of a job: an http(s) address that gets a signed POST when it has ended."),
    ] = None
    background: Annotated[str | None, Field(description="Accepted for OpenAI clients, without effect.")] = None
    moderation: Annotated[str | None, Field(description="Accepted for OpenAI clients, without effect.")] = None
    style: Annotated[str | None, Field(description="Without effect: put the style into the prompt.")] = None

    def fingerprint(self) -> str:
        """What the caller asked for, however it is handed over. Of the request and not of the job: a seed that he left
        open is drawn anew each time."""
        text = self.model_dump_json(exclude_none=True, exclude={"stream", "response_format"})
        return hashlib.sha256(text.encode()).hexdigest()

    @model_validator(mode="before")
    @classmethod
    def _known_names_only(cls, data: Any) -> Any:
        """Unknown parameters are refused by name, with the nearest valid one; silence would hide typos."""
        if not isinstance(data, dict):
            return data
        kept = dict(data)
        for name in NOT_YET:
            # stream=false and the like ask for what happens anyway.
            if kept.pop(name, None):
                raise PydanticCustomError(
                    "not_supported", f"'{name}' is not supported yet. Leave it out.", {"param": name}
                )
        for name in kept:
            if name not in cls.model_fields:
                close = difflib.get_close_matches(name, cls.model_fields, n=1)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                valid = ", ".join(cls.model_fields)
                raise PydanticCustomError(
                    "unknown_parameter",
                    "Unknown parameter '{param}'.{hint} Valid parameters: {valid}.",
                    # Halves of surrogate pairs are no text that an answer could carry.
                    {"param": ascii(name[:100])[1:-1], "hint": hint, "valid": valid},
                )
        return kept

    @field_validator("*")
    @classmethod
    def _text_is_unicode(cls, value: Any) -> Any:
        """JSON can spell halves of surrogate pairs, which no file, hash or answer can hold."""
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise PydanticCustomError("bad_unicode", "contains half of a surrogate pair; send valid Unicode")
        return value

    @field_validator("prompt")
    @classmethod
    def _prompt_says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise PydanticCustomError("empty_prompt", "must not be blank; say what to draw")
        if "\0" in prompt:  # it ends a field of PNG metadata, so the picture could not tell its prompt
            raise PydanticCustomError("null_character", "contains a null character (U+0000); leave it out")
        return prompt

    @field_validator("guidance_interval")
    @classmethod
    def _interval_is_ordered(cls, interval: list[float] | None) -> list[float] | None:
        if interval is not None and interval[0] > interval[1]:
            raise PydanticCustomError("bad_interval", "must begin before it ends, for example [0.2, 0.8]")
        return interval

    @field_validator("size")
    @classmethod
    def _size_has_a_form(cls, size: str | None) -> str | None:
        if size is not None and size != "auto" and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", size):
            raise PydanticCustomError("bad_size", 'must be "auto" or "WIDTHxHEIGHT", for example "128x128"')
        return size


class ImageData(BaseModel):
    b64_json: str | None = Field(default=None, description="The file, base64.")
    url: str | None = Field(default=None, description="Where the file is, until the job expires.")
    revised_prompt: None = None
    seed: int = Field(description="Send it back to get this very picture again.")


class InputTokens(BaseModel):
    text_tokens: int
    image_tokens: int = 0


class Usage(BaseModel):
    """In the model's own tokens: of the prompt, and of the pictures."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokens


class ImagesResponse(BaseModel):
    """OpenAI's ImagesResponse with a seed per picture, timing and warnings."""

    created: int
    data: list[ImageData]
    output_format: str
    size: str
    quality: str
    background: str = "opaque"
    job_id: str
    usage: Usage | None = None
    metrics: Metrics | None = None
    warnings: list[str] = Field(default_factory=list)
