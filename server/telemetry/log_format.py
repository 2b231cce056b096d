"""Log lines as JSON: one object a line, with the trace and the job that it is about."""

import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime

from server.telemetry.trace_context import trace_id_of_job
from server.telemetry.tracing import current

_JOB = re.compile(r"\bjob_[0-9a-zA-Z-]+")


class JsonFormatter(logging.Formatter):
    """Formats a record with time, level, component, logger, message, and where known trace_id, job_id and exception."""

    def __init__(self, component: str, hide: Callable[[str], str]) -> None:
        """`hide` removes secrets from a text."""
        super().__init__()
        self._component, self._hide = component, hide

    def format(self, record: logging.LogRecord) -> str:
        message = self._hide(record.getMessage())
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "component": self._component,
            "logger": record.name,
            "message": message,
        }
        job = _JOB.search(message)
        if job:
            line["job_id"] = job.group()
        span = current.get()
        if trace_id := (span.context.trace_id if span else trace_id_of_job(line.get("job_id", ""))):
            line["trace_id"] = trace_id
        if record.exc_info:
            line["exception"] = self._hide(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)
