"""The errors that HTTP callers get, each with its status, and the body that all of them share."""

from collections.abc import Mapping
from typing import Any, ClassVar

from server.errors.base import FluidError

#: OpenAI's clients retry 5xx unless told otherwise: jobs that used up their attempts would get three times as many.
NO_RETRY: Mapping[str, str] = {"x-should-retry": "false"}


class RequestError(FluidError):
    """An error response to the HTTP caller. OpenAPI describes a subclass by its docstring's first sentence."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    always: ClassVar[Mapping[str, str]] = {}  #: headers of every response of this class
    #: Counted in fluid_jobs_rejected_total when it answers a POST: nothing was queued.
    rejection: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.extra = extra or {}

    def body(self) -> dict[str, Any]:
        return error_body(self.message, type=self.type, param=self.param, code=self.code)

    def headers(self) -> dict[str, str]:
        retry = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return {**self.always, **self.extra, **retry}


class InvalidRequest(RequestError):
    """A parameter is invalid; `param` names it, and the message names the limit."""

    status, type, code = 400, "invalid_request_error", "invalid_value"
    rejection = True


class JobCanceled(RequestError):
    """The job that this request waited for was canceled."""

    status, type, code = 400, "invalid_request_error", "job_canceled"


class InvalidApiKey(RequestError):
    """The API key is missing or unknown."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"
    rejection = True
    always: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class KeyDisabled(RequestError):
    """The operator has disabled this API key."""

    status, type, code = 403, "permission_error", "key_disabled"
    rejection = True


class OriginNotAllowed(RequestError):
    """The Host header, or the web page that sent the request, is not allowed."""

    status, type, code = 403, "permission_error", "origin_not_allowed"
    rejection = True


class NotAcceptable(RequestError):
    """The Accept header asks for an unsupported image type, or one that differs from `output_format`."""

    status, type, code = 406, "invalid_request_error", "not_acceptable"
    rejection = True


class RequestTooSlow(RequestError):
    """The body did not arrive within FLUID_BODY_TIMEOUT_S."""

    status, type, code = 408, "invalid_request_error", "request_too_slow"
    rejection = True
    #: The rest of the body may still arrive, and must not be read as the next request.
    always: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class BodyTooLarge(RequestError):
    """The body, or a file in it, is larger than the limit."""

    status, type, code = 413, "invalid_request_error", "body_too_large"
    rejection = True


class UnknownJob(RequestError):
    """No job has this id."""

    status, type, code = 404, "invalid_request_error", "job_not_found"


class UnknownImage(RequestError):
    """The job has no such image; with `Retry-After`, the image is not finished yet."""

    status, type, code = 404, "invalid_request_error", "image_not_found"


class UnknownModel(RequestError):
    """No worker has published a model with this id."""

    status, type, code = 404, "invalid_request_error", "model_not_found"


class UnknownFile(RequestError):
    """No file has this id, or it was deleted."""

    status, type, code = 404, "invalid_request_error", "file_not_found"


class UnknownBatch(RequestError):
    """No batch has this id, or it was deleted."""

    status, type, code = 404, "invalid_request_error", "batch_not_found"


class JobExpired(RequestError):
    """The job has ended, and its result was deleted after FLUID_RESULT_TTL_S."""

    status, type, code = 410, "invalid_request_error", "expired"


class KeyReused(RequestError):
    """The Idempotency-Key or job id belongs to another request. Not a 409, which clients retry by themselves."""

    status, type, code = 422, "invalid_request_error", "idempotency_key_reused"


class RateLimited(RequestError):
    """The API key is over a limit: requests, jobs, memory, batches, streams; obey `Retry-After`."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"
    rejection = True


class QueueFull(RequestError):
    """The queue is full: FLUID_MAX_QUEUE jobs wait, or its memory is used up (FLUID_MAX_MIB); obey `Retry-After`."""

    status, type, code = 429, "rate_limit_error", "queue_full"
    rejection = True


class JobFailed(RequestError):
    """The job failed after all its attempts."""

    status, type, code = 500, "server_error", "job_failed"
    always = NO_RETRY


class NoWorkers(RequestError):
    """No live worker can generate; obey `Retry-After`."""

    status, type, code = 503, "server_error", "no_workers"
    rejection = True


class QueueUnavailable(RequestError):
    """The queue does not respond, or refuses writes; the message says why. Obey `Retry-After`."""

    status, type, code = 503, "server_error", "queue_unavailable"
    rejection = True

    def __init__(self, reason: str = "does not answer") -> None:
        super().__init__(f"The queue {reason}. Nothing was lost; try again.", retry_after_s=1)


class NotReplicated(RequestError):
    """Too few replicas of Redis have the request (FLUID_REPLICAS): it was not accepted. Obey `Retry-After`."""

    status, type, code = 503, "server_error", "not_replicated"
    rejection = True


class StorageUnavailable(RequestError):
    """The store of finished images (FLUID_RESULTS) does not respond; the message says why. Obey `Retry-After`."""

    status, type, code = 503, "server_error", "storage_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The store of finished images {reason}. Nothing was lost; try again.", retry_after_s=1)
        self.reason = reason  #: how a sentence that begins with "The store of finished images" ends


class UnreadableRecord(RequestError):
    """A record in Redis that another version of the service wrote; a gateway of that version can read it."""

    status, type, code = 503, "server_error", "record_unreadable"


class DeadlineExceeded(RequestError):
    """The images were not ready within FLUID_REQUEST_TIMEOUT_S or `deadline_ms`; the job was canceled."""

    status, type, code = 504, "server_error", "deadline_exceeded"
    always = NO_RETRY


def error_body(message: str, *, type: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The OpenAI error shape, which every OpenAI-compatible SDK can parse."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}
