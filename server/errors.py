"""Every error of the service, and the single map from an error to an HTTP status and an OpenAI-shaped body.

FluidError
├── ConfigError                 the service cannot start with this configuration
│   ├── SettingError            a FLUID_* name or value is wrong
│   ├── DataDirInUse            another instance holds the data folder
│   └── ValkeyStartError        the embedded Valkey is missing or did not start
├── RequestError                sent to the HTTP caller as an error response
│   ├── InvalidRequest          400  a parameter is invalid; names it and the limit
│   ├── JobCanceled             400  the job that this request waited for was canceled
│   ├── InvalidApiKey           401  no key, or an unknown one
│   ├── KeyDisabled, OriginNotAllowed  403  disabled; another site's page, or an unknown Host
│   ├── NotAcceptable           406  an unsupported image type
│   ├── RequestTooSlow          408  the body did not arrive in time
│   ├── BodyTooLarge            413  larger than any valid request
│   ├── UnknownJob, UnknownModel, UnknownFile, UnknownBatch, UnknownImage  404
│   ├── JobExpired              410
│   ├── KeyReused               422  the Idempotency-Key or job id of another request
│   ├── RateLimited, QueueFull  429  too much from one key; too much from all
│   ├── JobFailed               500
│   ├── NoWorkers, QueueUnavailable, NotReplicated, UnreadableRecord  503
│   └── DeadlineExceeded        504
├── OperatorError               ends an operator's command
│   ├── KeyNameRefused, UnknownDeadLetter
│   ├── BatchRefused, EditRefused  a file of `fluid batch`, `edit` or `vary` cannot be used
│   ├── ReloadRefused           a worker keeps its current checkpoint
│   └── UnhealthyService        `fluid doctor` found something to act on
├── WorkerError                 ends the worker process
│   └── CanaryFailed, EngineBroken  the first image is invalid; rows cannot even be released
└── ServiceError                raised by the client: the service answered with an error
"""

from collections.abc import Mapping
from typing import Any, ClassVar

#: OpenAI's clients retry 5xx unless told otherwise: jobs that used up their attempts would get three times as many.
NO_RETRY: Mapping[str, str] = {"x-should-retry": "false"}


class FluidError(Exception):
    """Base of everything this service raises on purpose."""


class ConfigError(FluidError):
    """The service cannot start with this configuration."""


class SettingError(ConfigError):
    """A FLUID_* name or value is wrong."""


class DataDirInUse(ConfigError):
    """Another instance holds the data folder."""


class ValkeyStartError(ConfigError):
    """The embedded Valkey is missing or did not start."""


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


class UnreadableRecord(RequestError):
    """A record in Redis that another version of the service wrote; a gateway of that version can read it."""

    status, type, code = 503, "server_error", "record_unreadable"


class DeadlineExceeded(RequestError):
    """The images were not ready within FLUID_REQUEST_TIMEOUT_S or `deadline_ms`; the job was canceled."""

    status, type, code = 504, "server_error", "deadline_exceeded"
    always = NO_RETRY


class OperatorError(FluidError):
    """Ends an operator's command."""


class UnknownDeadLetter(OperatorError):
    """No dead letter has this job id."""


class BatchRefused(OperatorError):
    """`fluid batch` cannot start, or its file was rejected."""


class EditRefused(OperatorError):
    """`fluid edit` or `fluid vary` cannot use a file or a box."""


class ReloadRefused(OperatorError):
    """A worker keeps its current checkpoint."""


class UnhealthyService(OperatorError):
    """`fluid doctor` found something to act on."""


class KeyNameRefused(OperatorError):
    """The file of API keys cannot hold this name."""


class WorkerError(FluidError):
    """Ends the worker process; other workers take its jobs."""


class CanaryFailed(WorkerError):
    """The first image after loading is not a valid image."""


class EngineBroken(WorkerError):
    """The engine cannot even release its rows, or a device that shares its model has gone."""


class ServiceError(FluidError):
    """Raised by the client: the service answered with an error."""

    def __init__(self, message: str, *, status: int = 0, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def error_body(message: str, *, type: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The OpenAI error shape, which every OpenAI-compatible SDK can parse."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}
