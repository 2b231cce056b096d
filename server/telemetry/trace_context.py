"""W3C trace context: the `traceparent` header, and the traces of the jobs that a worker holds."""

import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A position in a trace; ids are in hexadecimal, of 16 and 8 bytes."""

    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def parse_traceparent(text: str) -> TraceContext | None:
    """Return the context of a `traceparent` header; None if it is malformed, which must not fail a request.

    Later versions begin like version 00, which is all that is read.
    """
    found = _TRACEPARENT.fullmatch(text.strip())
    if found is None or (text.startswith("00-") and len(text.strip()) != 55):
        return None
    trace_id, span_id, flags = found.groups()
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


#: Trace ids of the jobs that this worker holds, for its log lines.
_of_jobs: dict[str, str] = {}


def remember_job(job_id: str, trace_id: str) -> None:
    _of_jobs[job_id] = trace_id


def forget_job(job_id: str) -> None:
    _of_jobs.pop(job_id, None)


def trace_id_of_job(job_id: str) -> str:
    """Return the trace id of a job that this process holds, or ""."""
    return _of_jobs.get(job_id, "")
