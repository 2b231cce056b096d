"""Parsing of traceparent, and log lines as JSON."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.settings import Settings
from server.telemetry.log_format import JsonFormatter
from server.telemetry.trace_context import TraceContext, forget_job, parse_traceparent, remember_job
from server.telemetry.tracing import OFF, open_tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", TraceContext(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-03", TraceContext(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        ("", None),
    ],
)
def test_traceparent_is_read_as_w3c_says(text: str, expected: TraceContext | None) -> None:
    assert parse_traceparent(text) == expected
    if expected is not None:
        assert parse_traceparent(str(expected)) == expected


@given(st.text(max_size=80))
def test_no_header_makes_it_raise(text: str) -> None:
    parse_traceparent(text)


def test_without_an_endpoint_nothing_is_traced() -> None:
    assert open_tracing(Settings(), "gateway") is OFF
    assert OFF.request(f"00-{TRACE}-{SPAN}-01", "GET") is None
    assert not OFF.on
    OFF.close()


def line(message: str, *args: object, error: bool = False) -> dict[str, str]:
    """Format one record as JSON, as a process does whose secret is hunter2."""
    info = None
    if error:
        try:
            raise ValueError("hunter2 in an exception")
        except ValueError:
            info = sys.exc_info()
    record = logging.LogRecord("server.x", logging.WARNING, "x.py", 1, message, args, info)
    return dict(json.loads(JsonFormatter("worker", lambda text: text.replace("hunter2", "***")).format(record)))


def test_a_line_names_its_job_and_trace() -> None:
    remember_job("job_1a", TRACE)
    found = line("%s succeeded", "job_1a")
    assert (found["job_id"], found["trace_id"], found["level"], found["component"]) == (
        "job_1a",
        TRACE,
        "warning",
        "worker",
    )
    forget_job("job_1a")
    assert "trace_id" not in line("%s succeeded", "job_1a")
    assert "job_id" not in line("ready")


def test_secrets_are_hidden_and_lines_stay_single() -> None:
    text = json.dumps(line('a "quoted" hunter2\nsecond line', error=True))
    assert "hunter2" not in text and "\n" not in text and "ValueError" in text
