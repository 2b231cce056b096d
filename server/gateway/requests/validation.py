"""Turn pydantic's validation errors into this service's own errors."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from server.errors import InvalidRequest

M = TypeVar("M", bound=BaseModel)


def validated(schema: type[M], values: Mapping[str, Any], *, strict: bool | None = None) -> M:
    """Validate values that FastAPI has not, such as form fields and lines of a batch.

    Raises:
        InvalidRequest: a value is wrong.
    """
    try:
        return schema.model_validate(values, strict=strict)
    except ValidationError as error:
        raise from_validation(dict(error.errors()[0])) from error


def from_validation(first: dict[str, Any]) -> InvalidRequest:
    """Describe one of pydantic's errors in a sentence that names the parameter, its limit and the value sent."""
    context = first.get("ctx", {})
    if first["type"] == "unknown_parameter":
        return InvalidRequest(first["msg"], param=context["param"])
    if first["type"] == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {context.get('error', first['msg'])}.")
    place = [str(part) for part in first["loc"] if part not in ("body", "path", "query", "header")]
    if not place:
        return InvalidRequest("The body must be a JSON object with at least a 'prompt'.")
    name = place[0]
    if first["type"] == "missing":
        return InvalidRequest(f"Missing required parameter: '{name}'.", param=name)
    sent = repr(first.get("input"))
    shown = sent if len(sent) <= 80 else sent[:77] + "..."
    reason = first["msg"].removeprefix("Input ")
    return InvalidRequest(f"'{name}' {reason[0].lower()}{reason[1:]}; got {shown}.", param=name)
