"""The forms of edits and variations: those of new pictures, plus what is theirs, minus what they cannot do yet."""

from typing import Annotated, ClassVar

from pydantic import Field

from server.gateway.schemas.images import NOT_YET, ImageRequest

MAX_FEATHER = 64
DEFAULT_FEATHER = 2
DEFAULT_KEEP = 0.5


class StartedRequest(ImageRequest):
    """What forms have in common that bring a picture to start from."""

    not_yet: ClassVar[tuple[str, ...]] = (*NOT_YET, "webhook")


class EditRequest(StartedRequest):
    """A new part for a picture."""

    feather: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_FEATHER,
            description="Pixels inside the mask over which the old picture goes over into the new part.",
        ),
    ] = None
    input_fidelity: Annotated[str | None, Field(description="Accepted for OpenAI clients, without effect.")] = None


class VariationRequest(StartedRequest):
    """A picture drawn again around a part of it. OpenAI's variations have no stream, so no client could read one."""

    not_yet: ClassVar[tuple[str, ...]] = (*StartedRequest.not_yet, "stream", "partial_images")

    prompt: Annotated[
        str, Field(min_length=1, max_length=2000, description="What to draw; that of the picture's recipe if omitted.")
    ] = ""
    keep: Annotated[
        float | None,
        Field(ge=0, lt=1, allow_inf_nan=False, description="Share of the picture's tokens that stays; 0.5 if omitted."),
    ] = None
