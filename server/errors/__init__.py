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
│   ├── NoWorkers, QueueUnavailable, NotReplicated, StorageUnavailable, UnreadableRecord  503
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

from server.errors.base import (
    ConfigError,
    DataDirInUse,
    FluidError,
    SettingError,
    ValkeyStartError,
)
from server.errors.operations import (
    BatchRefused,
    CanaryFailed,
    EditRefused,
    EngineBroken,
    KeyNameRefused,
    OperatorError,
    ReloadRefused,
    ServiceError,
    UnhealthyService,
    UnknownDeadLetter,
    WorkerError,
)
from server.errors.requests import (
    NO_RETRY,
    BodyTooLarge,
    DeadlineExceeded,
    InvalidApiKey,
    InvalidRequest,
    JobCanceled,
    JobExpired,
    JobFailed,
    KeyDisabled,
    KeyReused,
    NotAcceptable,
    NotReplicated,
    NoWorkers,
    OriginNotAllowed,
    QueueFull,
    QueueUnavailable,
    RateLimited,
    RequestError,
    RequestTooSlow,
    StorageUnavailable,
    UnknownBatch,
    UnknownFile,
    UnknownImage,
    UnknownJob,
    UnknownModel,
    UnreadableRecord,
    error_body,
)

__all__ = [
    "NO_RETRY",
    "BatchRefused",
    "BodyTooLarge",
    "CanaryFailed",
    "ConfigError",
    "DataDirInUse",
    "DeadlineExceeded",
    "EditRefused",
    "EngineBroken",
    "FluidError",
    "InvalidApiKey",
    "InvalidRequest",
    "JobCanceled",
    "JobExpired",
    "JobFailed",
    "KeyDisabled",
    "KeyNameRefused",
    "KeyReused",
    "NoWorkers",
    "NotAcceptable",
    "NotReplicated",
    "OperatorError",
    "OriginNotAllowed",
    "QueueFull",
    "QueueUnavailable",
    "RateLimited",
    "ReloadRefused",
    "RequestError",
    "RequestTooSlow",
    "ServiceError",
    "SettingError",
    "StorageUnavailable",
    "UnhealthyService",
    "UnknownBatch",
    "UnknownDeadLetter",
    "UnknownFile",
    "UnknownImage",
    "UnknownJob",
    "UnknownModel",
    "UnreadableRecord",
    "ValkeyStartError",
    "WorkerError",
    "error_body",
]
