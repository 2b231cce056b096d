"""The response with images: files or links, usage, timings, warnings."""

from pydantic import BaseModel, ConfigDict, Field

from server.gateway.schemas.jobs import JOB_ID, METRICS, Metrics


class ImageData(BaseModel):
    """One generated image."""

    b64_json: str | None = Field(default=None, description="The image file in base64.")
    url: str | None = Field(
        default=None,
        description="Link to the image file, which needs no API key; on a service with keys it expires after "
        "FLUID_LINK_TTL_S, at the latest with the job.",
    )
    revised_prompt: None = Field(default=None, description="Always null: prompts are never rewritten.")
    seed: int = Field(description="Seed of this image. Send it with the same parameters to get the same image again.")


class InputTokens(BaseModel):
    """Input tokens by kind."""

    text_tokens: int = Field(description="Tokens of the prompt.")
    image_tokens: int = Field(default=0, description="Tokens of a source image.")


class Usage(BaseModel):
    """Tokens of the prompt and of the images, in the model's own units."""

    input_tokens: int = Field(description="Tokens of the prompt.")
    output_tokens: int = Field(description="Tokens of the generated images.")
    total_tokens: int = Field(description="Input and output tokens together.")
    input_tokens_details: InputTokens


class ImagesResponse(BaseModel):
    """OpenAI's ImagesResponse with a seed per image, timings and warnings."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "created": 1767225600,
                    "data": [{"b64_json": "iVBORw0KGgo…", "url": None, "revised_prompt": None, "seed": 7}],
                    "output_format": "png", "size": "128x128", "quality": "medium", "background": "opaque",
                    "job_id": JOB_ID, "metrics": METRICS, "warnings": [],
                    "usage": {
                        "input_tokens": 9, "output_tokens": 64, "total_tokens": 73,
                        "input_tokens_details": {"text_tokens": 9, "image_tokens": 0},
                    },
                }
            ]
        }
    )  # fmt: skip

    created: int = Field(description="When the images were completed, in Unix seconds.")
    data: list[ImageData]
    output_format: str = Field(description="png, webp or jpeg.")
    size: str = Field(description='Size of the images as "WIDTHxHEIGHT".')
    quality: str = Field(description="The preset that was used.")
    background: str = Field(default="opaque", description="opaque, or transparent if the image has alpha.")
    job_id: str = Field(description="The job behind this response, for GET /v1/jobs/{job_id}.")
    usage: Usage | None = None
    metrics: Metrics | None = Field(default=None, description="Where the time went.")
    warnings: list[str] = Field(
        default_factory=list, description="What was mapped, had no effect, or is unknown to the model."
    )
