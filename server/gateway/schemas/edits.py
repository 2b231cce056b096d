"""Forms for edits and variations: an image request's fields plus their own, minus those they do not support."""

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from server.gateway.schemas.images import ImageRequest

MAX_FEATHER = 64
DEFAULT_FEATHER = 2
DEFAULT_KEEP = 0.5


class SourceImageRequest(ImageRequest):
    """Base of the forms that upload a source image."""

    #: Parameters that are rejected unless they are empty or false.
    unsupported: ClassVar[tuple[str, ...]] = ("webhook",)


class EditRequest(SourceImageRequest):
    """Regenerate part of an image."""

    # The example has every field as text, as forms do, and file names in place of the files' bytes.
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image": "apple.png", "mask": "mask.png", "prompt": "a green apple, 3d style", "seed": "7"}
            ]
        }
    )  # fmt: skip

    feather: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_FEATHER,
            description="Width in pixels, inside the mask, over which the source image blends into the new part.",
        ),
    ] = None
    input_fidelity: Annotated[str | None, Field(description="Accepted for OpenAI clients; no effect.")] = None


class VariationRequest(SourceImageRequest):
    """Regenerate an image around a random part of it. No `stream`: OpenAI's variations have none."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": "apple.png", "keep": "0.3", "n": "3"}]})
    unsupported: ClassVar[tuple[str, ...]] = (*SourceImageRequest.unsupported, "stream", "partial_images")

    prompt: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            description="What to generate; the prompt in the image's metadata if omitted. Without either, only the "
            "image guides.",
        ),
    ] = ""
    keep: Annotated[
        float | None,
        Field(ge=0, lt=1, allow_inf_nan=False, description="Fraction of the image's tokens to keep; 0.5 if omitted."),
    ] = None
