"""Check the form of a body before FastAPI reads it, so that the error names the real cause."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from server.errors import InvalidRequest
from server.gateway.dependencies import ServicesDep, services_of
from server.gateway.middleware.auth import CallerDep, caller_of
from server.json_text import JsonError, decode_utf8, parse


class JsonRoute(APIRoute):
    """A route whose body, if it takes one, must be an uncompressed JSON object in UTF-8."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        if (call_directly := _direct_call(self)) is not None:
            return call_directly

        async def check_and_handle(request: Request) -> Response:
            await _parse_json(request)
            return await handle(request)

        return check_and_handle


def _direct_call(route: APIRoute) -> Callable[[Request], Coroutine[Any, Any, Response]] | None:
    """Return a handler for an endpoint that needs nothing but the request, its body, the services and the caller, and
    returns a Response; None for others. FastAPI's own, which solves dependencies anew for each request and parses the
    body again, takes a fifth of the gateway's processor time."""
    endpoint: Callable[..., Awaitable[Response]] = route.endpoint
    field, hints = route.body_field, get_type_hints(route.endpoint, include_extras=True)
    if field is None or field.name not in hints or hints.pop("return", None) is not Response:
        return None
    sources: dict[Any, Callable[[Request], Any]] = {
        Request: lambda request: request, ServicesDep: services_of, CallerDep: caller_of,
    }  # fmt: skip
    given = {name: sources[hint] for name, hint in hints.items() if hint in sources}
    if given.keys() | {field.name} != hints.keys():
        return None

    async def handle(request: Request) -> Response:
        value = await _parse_json(request)
        body, errors = field.validate(value, {}, loc=("body",))
        if errors:
            raise RequestValidationError(errors, body=value)
        arguments = {name: source(request) for name, source in given.items()}
        return await endpoint(**arguments, **{field.name: body})

    return handle


class FormRoute(APIRoute):
    """A route whose body, if it takes one, must be an uncompressed multipart form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def check_and_handle(request: Request) -> Response:
            check_form(request)
            return await handle(request)

        return check_and_handle


def check_form(request: Request) -> None:
    """Check the headers of a multipart form.

    Raises:
        InvalidRequest: the body is compressed, or not multipart/form-data.
    """
    _check_encoding(request)
    if (sent := _content_type(request)) != "multipart/form-data":
        raise InvalidRequest(
            f"The body must be multipart/form-data, not {ascii(sent)[1:-1] or 'without a content type'}."
        )


async def _parse_json(request: Request) -> dict[str, Any]:
    """Parse a JSON body; the request keeps its bytes for the next reader.

    Raises:
        InvalidRequest: the body is no JSON object; names the cause.
    """
    _check_encoding(request)
    try:
        data = await request.body()
    except ClientDisconnect as error:
        raise InvalidRequest("The client disconnected before its body was complete.") from error
    if not data:
        raise InvalidRequest("The body is empty; send a JSON object.")
    sent = _content_type(request)
    kind, _, subtype = sent.partition("/")
    if kind != "application" or not (subtype == "json" or subtype.endswith("+json")):
        found = f"is {ascii(sent)[1:-1]}" if sent else "is missing"
        raise InvalidRequest(
            f"The Content-Type {found}; send the JSON object as application/json.", param="Content-Type"
        )
    try:
        value = parse(decode_utf8(data))
    except JsonError as error:
        raise InvalidRequest(f"The body {error}.") from error
    if not isinstance(value, dict):
        names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
        raise InvalidRequest(f"The body must be a JSON object, not {names.get(type(value), 'a number')}.")
    return value


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise InvalidRequest(
            f"The body is compressed (Content-Encoding: {ascii(encoding[:40])[1:-1]}), which is not supported; send it "
            "uncompressed.",
            param="Content-Encoding",
        )


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()[:100]
