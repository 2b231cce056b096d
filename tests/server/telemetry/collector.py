"""A collector of OTLP over HTTP: decodes what arrives, and can be told to fail."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.server.harness import http_server, until


@dataclass(frozen=True)
class ReceivedSpan:
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    service: str
    kind: int
    began: int
    ended: int
    attributes: dict[str, Any]
    events: list[tuple[int, str, dict[str, Any]]]
    failed: bool
    links: list[str]  #: trace ids


@dataclass
class Collector:
    """Answers POST /v1/traces with `status`; other paths do not exist."""

    url: str = ""
    status: int = 200
    requests: int = 0
    bodies: list[bytes] = field(default_factory=list)
    _spans: list[ReceivedSpan] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def receive(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        message = ExportTraceServiceRequest.FromString(body)
        found = []
        for resource in message.resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    events = [
                        (event.time_unix_nano, event.name, _attributes(event.attributes)) for event in span.events
                    ]
                    found.append(
                        ReceivedSpan(
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            service,
                            span.kind,
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            _attributes(span.attributes),
                            events,
                            span.status.code == 2,
                            [link.trace_id.hex() for link in span.links],
                        )
                    )
        with self._lock:
            self.bodies.append(body)
            self._spans += found

    def spans(self, trace_id: str = "") -> list[ReceivedSpan]:
        with self._lock:
            return [span for span in self._spans if trace_id in ("", span.trace_id)]

    def trace(self, trace_id: str, *names: str) -> dict[str, ReceivedSpan]:
        """Wait until the trace has spans of these names, and return its spans by name."""

        def complete() -> dict[str, ReceivedSpan] | None:
            found = {span.name: span for span in self.spans(trace_id)}
            return found if set(names) <= set(found) else None

        return until(complete, what=f"spans {names} of the trace")  # type: ignore[return-value]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.requests += 1
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            status = collector.status if self.path == "/v1/traces" else 404
            if status == 200:
                assert self.headers["Content-Type"] == "application/x-protobuf"
                collector.receive(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http_server(Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        yield collector
