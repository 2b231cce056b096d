"""Errors that end an operator's command or a worker, and the error that the client raises."""

from server.errors.base import FluidError


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
