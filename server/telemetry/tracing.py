"""Spans by OpenTelemetry's SDK, sent as OTLP over HTTP; without FLUID_TRACES_URL nothing of it is imported.

The decision to sample is made here, before the SDK sees anything: a request that is not sampled costs a random number.
"""

import random
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from server import __version__
from server.addresses import is_loopback
from server.errors import ConfigError
from server.settings import Settings
from server.telemetry.trace_context import TraceContext, parse_traceparent

EXPORT_TIMEOUT_S = 3.0
SHUTDOWN_TIMEOUT_MS = 3000
Attributes = Mapping[str, str | int | float | bool]
Event = tuple[float, str, Attributes]  # Unix time, name, attributes


class Span:
    """A sampled span. What is not sampled is None."""

    def __init__(self, span: Any, tracing: "Tracing") -> None:
        self._span, self._tracing = span, tracing
        context = span.get_span_context()
        self.context = TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", True)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(dict(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def child(
        self, name: str, began: float, ended: float, attributes: Attributes, events: Sequence[Event] = ()
    ) -> None:
        """Add a span that has ended, with its events, by Unix times."""
        child = self._tracing.span(name, self.context, began=began, attributes=attributes)
        for at, event, details in events:
            child._span.add_event(event, dict(details), timestamp=_nanoseconds(at))
        child.end(at=ended)

    def end(self, *, error: str = "", at: float | None = None) -> None:
        """End the span. `error` is a code, never a message, which could quote a prompt."""
        if error:
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", error)
            self._span.set_status(StatusCode.ERROR)
        self._span.end(None if at is None else _nanoseconds(at))


#: Span of the request that is handled now, for the code that it calls and its log lines.
current: ContextVar[Span | None] = ContextVar("current span", default=None)


class Tracing:
    """Starts spans; `OFF` starts none."""

    def __init__(self, provider: Any = None, ratio: float = 0.0) -> None:
        """`provider` is a TracerProvider of the SDK."""
        self._provider, self._ratio = provider, ratio
        self._tracer = provider.get_tracer("fluid-serve", __version__) if provider else None

    @property
    def on(self) -> bool:
        return self._tracer is not None

    def request(self, traceparent: str, name: str) -> Span | None:
        """Start the span of a request; None if it is not sampled. A caller's traceparent decides, else the ratio."""
        if self._tracer is None:
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
        if self._tracer is None or not random.random() < self._ratio:
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
        assert self._tracer is not None
        from opentelemetry import trace

        def remote(at: TraceContext) -> trace.SpanContext:
            flags = trace.TraceFlags(1)
            return trace.SpanContext(int(at.trace_id, 16), int(at.span_id, 16), is_remote=True, trace_flags=flags)

        context = trace.set_span_in_context(trace.NonRecordingSpan(remote(parent))) if parent else None
        made = self._tracer.start_span(
            name,
            context,
            trace.SpanKind[kind],
            dict(attributes or {}),
            [trace.Link(remote(link))] if link else None,
            start_time=None if began is None else _nanoseconds(began),
        )
        return Span(made, self)

    def close(self) -> None:
        """Send what has not been sent, for a few seconds at most."""
        if self._provider is not None:
            self._provider.force_flush(SHUTDOWN_TIMEOUT_MS)
            self._provider.shutdown()


OFF = Tracing()


def check_installed(settings: Settings) -> None:
    """Raise ConfigError if FLUID_TRACES_URL is given without the extra `otel`."""
    packages = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
    try:
        missing = settings.traces_url and not all(find_spec(package) for package in packages)
    except ModuleNotFoundError:  # of a parent package
        missing = True
    if missing:
        raise ConfigError("FLUID_TRACES_URL needs OpenTelemetry: pip install '.[otel]' in a clone, or leave it empty.")


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
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    session = requests.Session()
    # As everywhere else, no proxy for this machine's own addresses.
    session.trust_env = not is_loopback(urlsplit(settings.traces_url).hostname or "")
    resource = Resource.create(
        {
            "service.name": f"fluid-serve-{component}",
            "service.namespace": settings.namespace,
            "service.version": __version__,
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(settings.traces_url, timeout=EXPORT_TIMEOUT_S, session=session)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider, settings.traces_ratio)


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
