"""Spans in OpenTelemetry's terms, sent as OTLP over HTTP; without FLUID_TRACES_URL nothing of it is imported.

A request that is not sampled costs a random number.
"""

import os
import random
import time
from collections.abc import Sequence
from contextvars import ContextVar
from importlib.util import find_spec
from urllib.parse import urlsplit

from server import __version__
from server.addresses import is_loopback
from server.errors import ConfigError
from server.settings import Settings
from server.telemetry.export import Attributes, Event, SpanData, SpanExporter
from server.telemetry.trace_context import TraceContext, parse_traceparent


class Span:
    """A sampled span. What is not sampled is None."""

    def __init__(self, data: SpanData, tracing: "Tracing") -> None:
        self._data, self._tracing = data, tracing

    @property
    def context(self) -> TraceContext:
        return self._data.context

    def set(self, attributes: Attributes) -> None:
        self._data.attributes.update(attributes)

    def rename(self, name: str) -> None:
        self._data.name = name

    def child(
        self, name: str, began: float, ended: float, attributes: Attributes, events: Sequence[Event] = ()
    ) -> None:
        """Add a span that has ended, with its events, by Unix times."""
        child = self._tracing.span(name, self.context, began=began, attributes=attributes)
        child._data.events.extend(events)
        child.end(at=ended)

    def end(self, *, error: str = "", at: float | None = None) -> None:
        """End the span. `error` is a code, never a message, which could quote a prompt."""
        if error:
            self._data.attributes["error.type"], self._data.failed = error, True
        self._data.ended = time.time() if at is None else at
        self._tracing.send(self._data)


#: Span of the request that is handled now, for the code that it calls and its log lines.
current: ContextVar[Span | None] = ContextVar("current span", default=None)


class Tracing:
    """Starts spans; `OFF` starts none."""

    def __init__(self, exporter: SpanExporter | None = None, ratio: float = 0.0) -> None:
        self._exporter, self._ratio = exporter, ratio

    @property
    def on(self) -> bool:
        return self._exporter is not None

    def send(self, span: SpanData) -> None:
        """Hand over a span that has ended."""
        if self._exporter is not None:
            self._exporter.add(span)

    def request(self, traceparent: str, name: str) -> Span | None:
        """Start the span of a request; None if it is not sampled. A caller's traceparent decides, else the ratio."""
        if self._exporter is None:
            return None
        parent = parse_traceparent(traceparent) if traceparent else None
        if not (parent.sampled if parent else random.random() < self._ratio):
            return None
        return self.span(name, parent, kind="SERVER")

    def batch_line(self, batch_id: str, line: int, batch_trace: str) -> Span | None:
        """Start the span of a batch's line, counted from 1; None if it is not sampled, by the ratio.

        It begins a trace of its own, since one trace of 50,000 lines could not be read, and has a link to the request
        that created the batch if that was traced.
        """
        if self._exporter is None or not random.random() < self._ratio:
            return None
        attributes: Attributes = {"fluid.batch": batch_id, "fluid.batch.line": line}
        return self.span(
            "batch line", None, kind="PRODUCER", attributes=attributes, link=parse_traceparent(batch_trace)
        )

    def span(
        self,
        name: str,
        parent: TraceContext | None,
        *,
        kind: str = "INTERNAL",
        began: float | None = None,
        attributes: Attributes | None = None,
        link: TraceContext | None = None,
    ) -> Span:
        """Start a sampled span; `began` is a Unix time, now if it is None."""
        trace_id = parent.trace_id if parent else f"{random.getrandbits(128) or 1:032x}"
        context = TraceContext(trace_id, f"{random.getrandbits(64) or 1:016x}", True)
        at = time.time() if began is None else began
        return Span(SpanData(name, context, parent, kind, at, dict(attributes or {}), link), self)

    def close(self) -> None:
        """Send what has not been sent, for a few seconds at most."""
        if self._exporter is not None:
            self._exporter.close()


OFF = Tracing()


def check_installed(settings: Settings) -> None:
    """Raise ConfigError if FLUID_TRACES_URL is given without the extra `otel`."""
    packages = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
    try:
        missing = settings.traces_url and not all(find_spec(package) for package in packages)
    except ModuleNotFoundError:  # of a parent package
        missing = True
    if missing:
        raise ConfigError("FLUID_TRACES_URL needs OpenTelemetry: pip install 'fluid-serve[otel]', or leave it empty.")


def open_tracing(settings: Settings, component: str) -> Tracing:
    """Begin to send the spans of a gateway or worker to FLUID_TRACES_URL; OFF if it is empty.

    OTEL_EXPORTER_OTLP_HEADERS and OTEL_RESOURCE_ATTRIBUTES count as usual.

    Raises:
        ConfigError: the extra `otel` is not installed.
    """
    if not settings.traces_url:
        return OFF
    check_installed(settings)
    import requests
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.util.re import parse_env_headers

    session = requests.Session()
    # As everywhere else, no proxy for this machine's own addresses.
    session.trust_env = not is_loopback(urlsplit(settings.traces_url).hostname or "")
    headers = ",".join(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}", "") for name in ("HEADERS", "TRACES_HEADERS"))
    session.headers.update({**parse_env_headers(headers, liberal=True), "Content-Type": "application/x-protobuf"})
    resource = Resource.create(
        {
            "service.name": f"fluid-serve-{component}",
            "service.namespace": settings.namespace,
            "service.version": __version__,
        }
    )
    known = {key: value for key, value in resource.attributes.items() if isinstance(value, (str, int, float))}
    return Tracing(SpanExporter(settings.traces_url, session, known), settings.traces_ratio)
