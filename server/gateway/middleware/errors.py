"""Error handlers: every error leaves in OpenAI's JSON shape; unexpected ones are logged under the request id."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge, QueueUnavailable, RateLimited, RequestError, RequestTooSlow, error_body
from server.gateway.dependencies import Services, services_of
from server.gateway.queue_trouble import reason
from server.gateway.requests.validation import from_validation

log = logging.getLogger(__name__)


class UnhandledErrors:
    """Answer unexpected exceptions with a 500, inside RequestContext and CORS, because a FastAPI handler of
    Exception runs outside all middleware: its response would lack the request id, CORS and security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_and_track(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_track)
        except Exception:
            log.exception("request %s failed", scope["state"]["request_id"])
            if started:
                raise  # part of the response has been sent: only a broken connection can tell the client
            body = error_body(
                "Internal error. The service's log has the details under this response's x-request-id.",
                type="server_error",
                param=None,
                code="internal_error",
            )
            await JSONResponse(body, status_code=500)(scope, receive, send)


def install_error_handlers(app: FastAPI) -> None:
    """Install handlers for the service's own errors, failed validation, unknown routes and a lost Redis."""
    app.add_exception_handler(RequestError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RedisError, _on_error)


def error_response(scope: Scope, error: RequestError | RedisError) -> JSONResponse:
    """Turn an error into its response, and count it if it rejected a job. Details of Redis go to the log only."""
    if isinstance(error, RedisError):
        services: Services = scope["app"].state.services
        log.error("Redis: %s", error)
        error = QueueUnavailable(reason(services.settings, error))
    if scope["method"] in ("POST", "PUT") and error.rejection:
        services = scope["app"].state.services
        services.metrics.rejected.labels(error.code).inc()
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, (RequestError, RedisError)):
        raise error
    return error_response(request.scope, error)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    return error_response(request.scope, from_validation(error.errors()[0]))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 413:
        return error_response(request.scope, BodyTooLarge(str(error.detail)))
    if error.status_code == 408:
        limit_s = services_of(request).settings.body_timeout_s
        too_slow = RequestTooSlow(f"The body did not arrive within {limit_s:g} s (FLUID_BODY_TIMEOUT_S).")
        return error_response(request.scope, too_slow)
    message = str(error.detail)
    if error.status_code == 429:
        return error_response(request.scope, RateLimited(message, retry_after_s=1))
    if error.status_code == 404:
        message = f"No such route: {request.method} {request.url.path}. See /docs for all routes."
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return JSONResponse(
        error_body(message, type="invalid_request_error", param=None, code=code),
        status_code=error.status_code,
        headers=dict(error.headers or {}),
    )
