"""The record of a batch, as its hash in Redis holds it, and OpenAI's batch object made from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.batch_format import URL, results_file
from server.errors import UnreadableRecord
from server.gateway.schemas.batches import BatchObject
from server.jobs import TERMINAL, JobRecord, JobState
from server.records import UNREADABLE, finite, read_json

COMPLETION_WINDOW_S = 86400  # "24h", the only completion_window that OpenAI offers
#: Every NAME_at field of OpenAI's batch object.
TIMESTAMPS = (
    "created", "in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """A snapshot of one batch."""

    id: str
    fields: Mapping[str, str]

    @classmethod
    def from_fields(cls, batch_id: str, fields: Mapping[str, str]) -> "Batch":
        """Check that every part of the record can be read.

        Raises:
            UnreadableRecord: another version of the service wrote it.
        """
        batch = cls(batch_id, fields)
        try:
            BatchObject.model_validate(batch.to_openai()), finite(fields["expires_at"]), fields["owner"]
        except UNREADABLE as error:
            raise UnreadableRecord(
                f"Batch {batch_id} was written by another version of this service and cannot be read here "
                f"({type(error).__name__}).",
                retry_after_s=5,
            ) from error
        return batch

    @property
    def status(self) -> str:
        return self.fields["status"]

    @property
    def endpoint(self) -> str:
        return self.fields.get("endpoint", URL)

    @property
    def total(self) -> int:
        return int(self.fields.get("total", 0))

    @property
    def cursor(self) -> int:
        """Number of lines processed so far: each became a job or was rejected."""
        return int(self.fields.get("cursor", 0))

    @property
    def rejected(self) -> int:
        """Number of lines that never became a job."""
        return int(self.fields.get("rejected", 0))

    @property
    def settled(self) -> int:
        """Number of lines from the first that are known to have ended, of a batch that is being canceled."""
        return int(self.fields.get("settled", 0))

    def ended(self, *states: JobState) -> int:
        """Number of jobs in these terminal states; without arguments, in any."""
        return sum(int(self.fields.get(f"ended:{state}", 0)) for state in states or TERMINAL)

    @property
    def unfinished(self) -> int:
        """Number of jobs that wait or run."""
        return self.cursor - self.rejected - self.ended()

    def job_id(self, line: int) -> str:
        return f"{self.id}_{line}"

    def to_openai(self) -> dict[str, Any]:
        """OpenAI's batch object."""

        def at(name: str) -> int | None:
            return int(float(self.fields[name])) if name in self.fields else None

        succeeded, begun = self.ended(JobState.SUCCEEDED), self.status not in ("validating", "failed")
        failed = self.rejected + self.ended() - succeeded
        return {
            "id": self.id, "object": "batch", "endpoint": self.endpoint, "status": self.status,
            "errors": read_json(self.fields.get("errors", "null")),
            "input_file_id": self.fields["input_file_id"], "completion_window": "24h",
            "output_file_id": results_file(self.id) if begun else None,
            "error_file_id": results_file(self.id, errors=True) if begun and failed else None,
            **{f"{name}_at": at(f"{name}_at") for name in TIMESTAMPS},
            "request_counts": {"total": self.total, "completed": succeeded, "failed": failed},
            "metadata": read_json(self.fields.get("metadata", "null")),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class LineResult:
    """The outcome of one line: its ended job, or the error response of a line that was rejected."""

    number: int  #: from 0
    custom_id: str
    body: Mapping[str, Any] = field(default_factory=dict)  #: the line's request
    job: JobRecord | None = None
    rejection: dict[str, Any] | None = None  #: {"status": HTTP status, "body": error body}
