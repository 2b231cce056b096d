"""A request of OpenAI's Responses API, read as the image request and the images that it stands for."""

from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest
from server.gateway.requests.validation import validated
from server.gateway.schemas.edits import EditRequest
from server.gateway.schemas.images import ImageRequest
from server.gateway.schemas.openai_responses import REFUSED, ResponsesRequest

TOOL = "image_generation"
#: Parameters of image requests that another part of the body has, or that one call of the tool cannot have.
_NOT_IN_TOOL = ("prompt", "n", "user", "stream", "response_format", "webhook")
_ONE_MESSAGE = "send one user message with the whole prompt: earlier ones would have no effect"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the tool is asked to do."""

    request: ImageRequest  #: an EditRequest if there is an image
    image: Any = None  #: reference to the image to edit
    mask: Any = None

    @property
    def action(self) -> str:
        return "generate" if self.image is None else "edit"


def read_call(body: ResponsesRequest) -> ToolCall:
    """Return the image request that the body stands for.

    Raises:
        InvalidRequest: the body asks for what is not served here, or is wrong; names the parameter.
    """
    for name, remedy in REFUSED.items():
        if getattr(body, name):
            raise InvalidRequest(f"'{name}' is not supported. {remedy}", param=name)
    tool = dict(body.tools[0])
    _check_tool(body, tool)
    prompt, image = _read_input(body.input)
    action, mask = tool.pop("action", None) or "auto", tool.pop("input_image_mask", None)
    if action not in ("generate", "edit", "auto"):
        raise InvalidRequest("'action' must be generate, edit or auto.", param="action")
    if image is None and action == "edit":
        raise InvalidRequest("'action' is edit, and 'input' has no input_image.", param="action")
    if image is not None and action == "generate":
        raise InvalidRequest(
            "'action' is generate, and 'input' has an image, which only an edit reads. Leave one of them out.",
            param="action",
        )
    if image is None and mask is not None:
        raise InvalidRequest("'input_image_mask' needs an input_image in 'input'.", param="input_image_mask")
    values = {name: value for name, value in tool.items() if value is not None and name != "type"}
    if body.model:
        values.setdefault("model", body.model)
    values |= {"prompt": prompt, "stream": body.stream, "user": body.user or body.safety_identifier}
    if image is None:
        values.pop("input_fidelity", None)  # of edits only, and without effect there
        return ToolCall(validated(ImageRequest, values))
    return ToolCall(validated(EditRequest, values), image, mask)


def _check_tool(body: ResponsesRequest, tool: dict[str, Any]) -> None:
    kind, choice = tool.pop("type", None), body.tool_choice
    if kind != TOOL:
        raise InvalidRequest(
            f"'tools' has a tool of type {ascii(kind)[:80]}; only {TOOL!r} is served here, and no text.", param="tools"
        )
    if isinstance(choice, dict) and choice != {"type": TOOL}:
        raise InvalidRequest(f"'tool_choice' must be auto, required or {{\"type\": {TOOL!r}}}.", param="tool_choice")
    for name in _NOT_IN_TOOL:
        if tool.get(name) is not None:
            raise InvalidRequest(f"{name!r} is not a parameter of the tool {TOOL}. Leave it out.", param=name)


def _read_input(given: str | list[dict[str, Any]]) -> tuple[str, Any]:
    """Return the prompt and the reference to an image, or None."""
    texts, images, messages = list[str](), list[Any](), 0
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        kind = item.get("type", "message")
        if kind == "image_generation_call":
            if not item.get("result"):
                raise _wrong("has an image_generation_call without its 'result'; responses are not kept, so send it")
            images.append(item["result"])
            continue
        if kind != "message":
            raise _wrong(f"has an item of type {ascii(kind)[:80]}; send message or image_generation_call")
        if item.get("role") != "user":
            raise _wrong(f"has a message with the role {ascii(item.get('role'))[:80]}; {_ONE_MESSAGE}")
        messages += 1
        _read_content(item.get("content"), texts, images)
    if messages != 1:
        raise _wrong(f"has {messages} messages; {_ONE_MESSAGE}")
    if len(images) > 1:
        raise _wrong(f"has {len(images)} images; send at most one, the image to edit")
    prompt = "\n".join(texts)
    if not prompt.strip():
        raise _wrong("has no text; say what to generate")
    return prompt, images[0] if images else None


def _read_content(content: Any, texts: list[str], images: list[Any]) -> None:
    if isinstance(content, str):
        texts.append(content)
        return
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise _wrong("has a message whose 'content' is neither text nor a list of parts")
    for part in content:
        if part.get("type") == "input_text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "input_image":
            images.append({name: part[name] for name in ("image_url", "file_id") if part.get(name)})
        else:
            raise _wrong(f"has a part of type {ascii(part.get('type'))[:80]}; send input_text or input_image")


def _wrong(text: str) -> InvalidRequest:
    return InvalidRequest(f"'input' {text}.", param="input")
