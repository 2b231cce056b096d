"""Every error in one JSON shape; the unexpected ones are logged with an id that the caller gets."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge, QueueUnavailable, RequestError, RequestTooSlow, error_body
from server.gateway.dependencies import Services, services_of
from server.gateway.middleware.body_limit import MAX_BODY_BYTES
from server.gateway.middleware.request_context import log
from server.gateway.requests.validation import from_validation


class UnhandledErrors:
    """Pure ASGI, inside RequestContext and CORS: a handler of Exception would run outside all middleware, and its
    answer have neither the id that it speaks of nor the headers that every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            log.exception("request %s failed", scope["state"]["request_id"])
            if begun:
                raise  # half an answer is out: only a broken connection tells that it is one
            body = error_body(
                "Something is wrong in the service; the log has it under this answer's x-request-id.",
                type="server_error",
                param=None,
                code="internal_error",
            )
            await JSONResponse(body, status_code=500)(scope, receive, send)


def install_error_handlers(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape, validation and unknown routes included."""
    app.add_exception_handler(RequestError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RedisError, _on_error)


def refuse(scope: Scope, error: RequestError | RedisError) -> JSONResponse:
    """The answer that is this error, counted. Of Redis only our log hears more than that it is away."""
    if isinstance(error, RedisError):
        log.error("Redis: %s", error)
        error = QueueUnavailable()
    if scope["method"] == "POST" and error.rejection:
        services: Services = scope["app"].state.services
        services.metrics.rejected.labels(error.code).inc()
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, (RequestError, RedisError)):
        raise error
    return refuse(request.scope, error)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    return refuse(request.scope, from_validation(error.errors()[0]))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 413:
        return refuse(
            request.scope, BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes; no request needs that.")
        )
    if error.status_code == 408:
        limit_s = services_of(request).settings.body_timeout_s
        late = RequestTooSlow(f"The body did not arrive within {limit_s:g} s (FLUID_BODY_TIMEOUT_S).")
        return refuse(request.scope, late)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"There is no {request.method} {request.url.path}. See /docs for what there is."
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return JSONResponse(
        error_body(message, type="invalid_request_error", param=None, code=code),
        status_code=error.status_code,
        headers=dict(error.headers or {}),
    )
