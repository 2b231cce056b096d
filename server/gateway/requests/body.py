"""Check the form of a body before FastAPI reads it, so that the error names the real cause."""

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from server.errors import InvalidRequest
from server.gateway.dependencies import ServicesDep, services_of
from server.gateway.middleware.auth import CallerDep, caller_of
from server.json_text import JsonError, decode_utf8, is_halved, may_be_halved, parse


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
        InvalidRequest: the body is compressed, not multipart/form-data, or not in UTF-8.
    """
    _check_encoding(request)
    if (sent := _content_type(request)) != "multipart/form-data":
        raise InvalidRequest(
            f"The body must be multipart/form-data, not {ascii(sent)[1:-1] or 'without a content type'}."
        )
    # Starlette decodes names by it, and some codecs of Python's make text that is in no JSON.
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8", "utf_8", "us-ascii", "ascii", "iso-8859-1", "latin-1"):
        raise InvalidRequest(f"A form must be in UTF-8, not charset {charset[:40]!a}.")


@contextmanager
def told_of_disconnects() -> Iterator[None]:
    """Tell a client that hung up within its body from a fault of the service.

    Raises:
        InvalidRequest: it did.
    """
    try:
        yield
    except ClientDisconnect as error:
        raise InvalidRequest("The client disconnected before its body was complete.") from error


async def _parse_json(request: Request) -> dict[str, Any]:
    """Parse a JSON body; the request keeps its bytes for the next reader.

    Raises:
        InvalidRequest: the body is no JSON object; names the cause.
    """
    _check_encoding(request)
    with told_of_disconnects():
        data = await request.body()
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
        text = decode_utf8(data)
        value = parse(text)
    except JsonError as error:
        raise InvalidRequest(f"The body {error}.") from error
    if not isinstance(value, dict):
        names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
        raise InvalidRequest(f"The body must be a JSON object, not {names.get(type(value), 'a number')}.")
    halved = next((name for name, item in value.items() if is_halved(item)), None) if may_be_halved(text) else None
    if halved is not None:
        name = ascii(halved[:100])[1:-1]
        raise InvalidRequest(f"'{name}' contains an unpaired surrogate; send valid Unicode.", param=name)
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
