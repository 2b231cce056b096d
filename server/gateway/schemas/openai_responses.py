"""The body of POST /v1/responses, OpenAI's Responses API as far as its image_generation tool goes, and the response."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from server.gateway.schemas.strict import StrictRequest, valid_unicode

_IGNORED = Field(description="Steers a text model, which takes no part here: accepted without effect.")
_REFUSED = Field(description="Refused unless it is null, false or empty.")
Ignored = Annotated[Any, _IGNORED]
Refused = Annotated[Any, _REFUSED]
#: Parameters of OpenAI's that would change what comes back, with the remedy that their refusal names.
REFUSED = {
    "background": "Use POST /v1/jobs, which does not wait.",
    "context_management": "There is no context to manage.",
    "conversation": "Responses are not kept; send the whole prompt, and an image to edit, in 'input'.",
    "include": "There is nothing more to include.",
    "instructions": "No text model follows them; put them into the prompt in 'input'.",
    "previous_response_id": "Responses are not kept; send the whole prompt, and an image to edit, in 'input'.",
    "prompt": "There are no stored prompts; send the text as 'input'.",
    "store": "Responses are not kept and cannot be retrieved; leave it out or set it to false.",
}
EXAMPLE: dict[str, Any] = {
    "input": "a red apple, 3d style",
    "tools": [{"type": "image_generation", "quality": "high", "seed": 7}],
}


def _check_metadata(metadata: dict[str, str] | None) -> dict[str, str] | None:
    """Bound what is returned, and reject what no response can hold, before an image is generated."""
    for name, value in (metadata or {}).items():
        valid_unicode(name)
        valid_unicode(value)
        if len(name) > 64 or len(value) > 512:
            raise PydanticCustomError("too_long", "has a name of more than 64 characters, or a value of more than 512")
    return metadata


class ResponsesRequest(StrictRequest):
    """A request of OpenAI's Responses API whose only tool is image_generation."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    input: Annotated[
        str | list[dict[str, Any]],
        Field(
            description="The prompt: text, or one user message with `input_text` and at most one `input_image` "
            "(`image_url` with a data URL, or `file_id`). An earlier `image_generation_call` with its `result` is an "
            "image to edit too."
        ),
    ]
    tools: Annotated[
        list[dict[str, Any]],
        Field(
            min_length=1,
            max_length=1,
            description='One tool of type "image_generation" with `action` (generate, edit or auto), '
            "`input_image_mask`, and the fields of POST /v1/images/generations except prompt, n, user, stream, "
            "response_format and webhook; of an edit also `feather`.",
        ),
    ]
    model: Annotated[
        str | None,
        Field(
            description="The image model, unless the tool names one. The name of a text model is accepted with a "
            "warning, and the default model generates."
        ),
    ] = None
    stream: Annotated[bool | None, Field(description="Respond with server-sent events.")] = None
    tool_choice: Annotated[
        Literal["auto", "required"] | dict[str, Any] | None,
        Field(description='The tool is called in any case: auto, required or {"type": "image_generation"}.'),
    ] = None
    metadata: Annotated[
        dict[str, str] | None,
        Field(
            max_length=16, description="Returned as it is, not kept: names of 64 and values of 512 characters at most."
        ),
        AfterValidator(_check_metadata),
    ] = None
    user: Annotated[
        str | None,
        Field(max_length=256, description="Your own label for an end user, as for images."),
    ] = None
    safety_identifier: Annotated[
        str | None, Field(max_length=256, description="OpenAI's new name of `user`, used where that is absent.")
    ] = None
    background: Refused = None
    context_management: Refused = None
    conversation: Refused = None
    include: Refused = None
    instructions: Refused = None
    previous_response_id: Refused = None
    prompt: Refused = None
    store: Refused = None
    max_output_tokens: Ignored = None
    max_tool_calls: Ignored = None
    moderation: Ignored = None
    parallel_tool_calls: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    reasoning: Ignored = None
    service_tier: Ignored = None
    stream_options: Ignored = None
    temperature: Ignored = None
    text: Ignored = None
    top_logprobs: Ignored = None
    top_p: Ignored = None
    truncation: Ignored = None


class ImageCall(BaseModel):
    """The call of the image_generation tool, with its image once it has completed."""

    type: Literal["image_generation_call"] = Field(default="image_generation_call", description="The kind of item.")
    id: str
    status: str = Field(description="in_progress, generating, completed or failed.")
    result: str | None = Field(default=None, description="The image file in base64.")
    action: str = Field(description="What was done: generate or edit.")
    background: str = Field(default="opaque", description="opaque or transparent.")
    output_format: str = Field(description="File format.")
    quality: str = Field(description="Preset of the sampling parameters.")
    size: str = Field(description="Width and height.")
    revised_prompt: None = Field(default=None, description="Always null: prompts are never rewritten.")
    seed: int = Field(description="Send it with the same parameters to get the same image again.")


class ResponseFault(BaseModel):
    """Why a streamed response failed."""

    code: str = Field(description="OpenAI's class of error: server_error or invalid_prompt.")
    message: str = Field(description="What failed, and what to do.")


class ResponseUsage(BaseModel):
    """Tokens of the prompt and of the image, in the model's own units."""

    input_tokens: int = Field(description="Tokens of the prompt.")
    input_tokens_details: dict[str, int] = Field(description="None are cached.")
    output_tokens: int = Field(description="Tokens of the image.")
    output_tokens_details: dict[str, int] = Field(description="None are for reasoning.")
    total_tokens: int = Field(description="Input and output tokens together.")


_CALL: dict[str, Any] = {
    "type": "image_generation_call", "id": "ig_3f2a", "status": "completed", "result": "iVBORw0KGgo…",
    "action": "generate", "background": "opaque", "output_format": "png", "quality": "high", "size": "128x128",
    "revised_prompt": None, "seed": 7,
}  # fmt: skip
_USAGE: dict[str, Any] = {
    "input_tokens": 9, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens": 64,
    "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 73,
}  # fmt: skip


class ResponseObject(BaseModel):
    """OpenAI's Response with one image_generation_call, and the warnings and job id of this service."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "resp_3f2a", "object": "response", "created_at": 1767225600, "completed_at": 1767225601,
                    "status": "completed", "model": "atlas-128", "output": [_CALL], "usage": _USAGE, "error": None,
                    "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True,
                    "previous_response_id": None, "temperature": None, "top_p": None, "tool_choice": "auto",
                    "tools": EXAMPLE["tools"], "store": False, "background": False, "user": None,
                    "job_id": "job_3f2a", "warnings": [],
                }
            ]
        }
    )  # fmt: skip

    id: str
    object: Literal["response"] = "response"
    created_at: float = Field(description="Unix time.")
    completed_at: float | None = Field(default=None, description="Unix time.")
    status: str = Field(description="in_progress, completed or failed.")
    model: str = Field(description="The image model.")
    output: list[ImageCall] = Field(description="The call of the tool.")
    usage: ResponseUsage | None = None
    error: ResponseFault | None = None
    incomplete_details: None = Field(default=None, description="Always null.")
    instructions: None = Field(default=None, description="Always null.")
    metadata: dict[str, str] = Field(default={}, description="As in the request.")
    parallel_tool_calls: bool = Field(default=True, description="Always true, without effect.")
    previous_response_id: None = Field(default=None, description="Always null: responses are not kept.")
    temperature: None = Field(default=None, description="Always null: there is no text model.")
    top_p: None = Field(default=None, description="Always null: there is no text model.")
    tool_choice: str | dict[str, Any] = Field(default="auto", description="As in the request.")
    tools: list[dict[str, Any]] = Field(description="As in the request, without a mask.")
    store: Literal[False] = Field(default=False, description="Always false: responses are not kept.")
    background: Literal[False] = Field(default=False, description="Always false.")
    user: str | None = Field(default=None, description="As in the request.")
    job_id: str = Field(description="The job behind the response.")
    warnings: list[str] = Field(default=[], description="What was mapped or had no effect.")
