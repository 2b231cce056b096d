"""Spans on their way to a collector: encoded as OTLP's protobuf and posted in batches by a thread of their own.

OpenTelemetry's SDK does the same for spans of any library, in 2.5 times the processor time (135 against 54 us for the
two spans of a request): with it, a tenth of the requests traced cost a gateway 2.7 %.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.background import RepeatedFailure
from server.telemetry.trace_context import TraceContext

log = logging.getLogger(__name__)
Attributes = Mapping[str, str | int | float | bool]
Event = tuple[float, str, Attributes]  # Unix time, name, attributes
EXPORT_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 3.0
INTERVAL_S = 5.0
BATCH = 512
MOST_WAITING = 4096  #: spans beyond that are lost, as those of a collector that does not answer
KINDS = {"INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
_ERROR = 2  #: code of a status
_FLAGS, _FLAGS_OF_PARENT = 0x100, 0x300  #: of OTLP: it is known whether the parent is remote; it is


@dataclass(slots=True)
class SpanData:
    """The recorded fields of a span; times are Unix times."""

    name: str
    context: TraceContext
    parent: TraceContext | None
    kind: str
    began: float
    attributes: dict[str, str | int | float | bool]
    link: TraceContext | None = None
    events: list[Event] = field(default_factory=list)
    ended: float = 0.0
    failed: bool = False


class SpanExporter:
    """Takes ended spans from any thread, and sends them every INTERVAL_S or BATCH spans."""

    def __init__(self, url: str, session: Any, resource: Attributes) -> None:
        """`session` is one of requests; `resource` are the attributes of this process."""
        self._url, self._session, self._resource = url, session, resource
        self._verify = os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE") or True
        self._waiting: deque[SpanData] = deque(maxlen=MOST_WAITING)
        self._due, self._closed = threading.Event(), False
        self._failure = RepeatedFailure(log)
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def add(self, span: SpanData) -> None:
        self._waiting.append(span)
        if len(self._waiting) == BATCH:
            self._due.set()

    def close(self) -> None:
        """Send what has not been sent, for a few seconds at most."""
        self._closed = True
        self._due.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        closed = False
        while not closed:
            self._due.wait(INTERVAL_S)
            self._due.clear()
            closed = self._closed
            while self._waiting:
                self._send([self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))])

    def _send(self, spans: list[SpanData]) -> None:
        """Post a batch; one that the collector does not take is lost."""
        try:
            self._session.post(
                self._url, data=encode(spans, self._resource), timeout=EXPORT_TIMEOUT_S, verify=self._verify
            ).raise_for_status()
        except Exception as error:  # of requests, or of a value that cannot be encoded; its text may hold the URL
            self._failure.warn(f"{len(spans)} spans are lost: {type(error).__name__}")
        else:
            self._failure.over()


def encode(spans: Iterable[SpanData], resource: Attributes) -> bytes:
    """Encode an ExportTraceServiceRequest."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

    from server import __version__

    def value(given: str | int | float | bool) -> AnyValue:
        if isinstance(given, str):
            return AnyValue(string_value=given)
        if isinstance(given, bool):
            return AnyValue(bool_value=given)
        return AnyValue(int_value=given) if isinstance(given, int) else AnyValue(double_value=given)

    def pairs(attributes: Attributes) -> list[KeyValue]:
        return [KeyValue(key=key, value=value(given)) for key, given in attributes.items()]

    def one(span: SpanData) -> Span:
        ids = bytes.fromhex(span.context.trace_id), bytes.fromhex(span.context.span_id)
        made = Span(
            trace_id=ids[0],
            span_id=ids[1],
            parent_span_id=bytes.fromhex(span.parent.span_id) if span.parent else b"",
            name=span.name,
            kind=KINDS[span.kind],  # type: ignore[arg-type]  # the number of an enumeration
            start_time_unix_nano=_nanoseconds(span.began),
            end_time_unix_nano=_nanoseconds(span.ended),
            attributes=pairs(span.attributes),
            flags=_FLAGS_OF_PARENT if span.parent else _FLAGS,
        )
        for at, name, details in span.events:
            made.events.append(Span.Event(name=name, time_unix_nano=_nanoseconds(at), attributes=pairs(details)))
        if (link := span.link) is not None:
            ids = bytes.fromhex(link.trace_id), bytes.fromhex(link.span_id)
            made.links.append(Span.Link(trace_id=ids[0], span_id=ids[1], flags=_FLAGS_OF_PARENT))
        if span.failed:
            made.status.CopyFrom(Status(code=_ERROR))  # type: ignore[arg-type]
        return made

    scope = InstrumentationScope(name="fluid-serve", version=__version__)
    found = ScopeSpans(scope=scope, spans=[one(span) for span in spans])
    about = Resource(attributes=pairs(resource))
    request = ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=about, scope_spans=[found])])
    return bytes(request.SerializeToString())


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
