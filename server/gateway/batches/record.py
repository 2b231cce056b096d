"""Where a batch stands, as its hash in Redis says, and how callers see it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.batch_format import URL, results_file
from server.jobs import TERMINAL

WINDOW_S = 86400  # the completion window: "24h"
MOMENTS = (
    "created", "in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """Where a batch stands, as its hash says."""

    id: str
    fields: Mapping[str, str]

    @property
    def status(self) -> str:
        return self.fields["status"]

    @property
    def total(self) -> int:
        return int(self.fields.get("total", 0))

    @property
    def cursor(self) -> int:
        """Lines that were dealt with: a job was made of them, or they were refused."""
        return int(self.fields.get("cursor", 0))

    @property
    def refused(self) -> int:
        return int(self.fields.get("refused", 0))

    def ended(self, *states: str) -> int:
        names = states or TERMINAL
        return sum(int(self.fields.get(f"ended:{state}", 0)) for state in names)

    @property
    def under_way(self) -> int:
        return self.cursor - self.refused - self.ended()

    def job_id(self, line: int) -> str:
        return f"{self.id}_{line}"

    def view(self) -> dict[str, Any]:
        """OpenAI's batch object."""

        def at(name: str) -> int | None:
            return int(float(self.fields[name])) if name in self.fields else None

        succeeded, begun = self.ended("succeeded"), self.status not in ("validating", "failed")
        failed = self.refused + self.ended() - succeeded
        return {
            "id": self.id, "object": "batch", "endpoint": URL, "status": self.status,
            "errors": json.loads(self.fields.get("errors", "null")),
            "input_file_id": self.fields["input_file_id"], "completion_window": "24h",
            "output_file_id": results_file(self.id) if begun else None,
            "error_file_id": results_file(self.id, errors=True) if begun and failed else None,
            **{f"{name}_at": at(f"{name}_at") for name in MOMENTS},
            "request_counts": {"total": self.total, "completed": succeeded, "failed": failed},
            "metadata": json.loads(self.fields.get("metadata", "null")),
        }  # fmt: skip
