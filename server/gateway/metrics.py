"""GET /metrics: figures of this gateway, of the queue, and of the workers, which count in Redis."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from server.jobs import JobState
from server.metrics import SECONDS, WORKER_SPECS
from server.model_info import ModelInfo
from server.queue.registry import WorkerInfo
from server.queue.statistics import QueueCounts


class GatewayMetrics:
    """Figures of the gateway itself. One registry per app, so that tests do not share counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fluid_http_requests",
            "HTTP requests by route, method and status code.",
            ("route", "method", "code"),
            registry=self.registry,
        )
        self.duration = Histogram(
            "fluid_http_request_duration_seconds",
            "Seconds from a request to the end of its response.",
            ("route", "method"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.followers = Gauge("fluid_followers", "Open event streams of jobs.", registry=self.registry)
        self.webhooks = Counter(
            "fluid_webhooks",
            "Webhook attempts by outcome: delivered, failed (will be attempted again), given_up or lost.",
            ("outcome",),
            registry=self.registry,
        )
        self.bugs = Counter(
            "fluid_background_failures",
            "Unexpected exceptions in the gateway's background tasks, which are restarted.",
            ("task",),
            registry=self.registry,
        )
        self.rejected = Counter(
            "fluid_jobs_rejected",
            "POST requests rejected before the queue, by error code.",
            ("reason",),
            registry=self.registry,
        )


class _Scrape:
    """The collector that generate_latest expects: anything with collect()."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(
    gateway: GatewayMetrics,
    counts: QueueCounts,
    workers: list[WorkerInfo],
    models: Mapping[str, ModelInfo],
    stats: Mapping[str, float],
    now: float,
) -> bytes:
    """Return the whole page in Prometheus' text format; `now` is Unix time, for the age of heartbeats."""
    families = [*gateway.registry.collect(), *_queue(counts), *_fleet(workers, models, now), *_worker(stats)]
    return generate_latest(_Scrape(families))


def _queue(counts: QueueCounts) -> Iterator[Metric]:
    submitted = CounterMetricFamily("fluid_jobs_submitted", "Jobs accepted, by kind of request.", labels=["kind"])
    for kind, value in counts.submitted.items():
        submitted.add_metric([kind], value)
    yield submitted
    finished = CounterMetricFamily("fluid_jobs_finished", "Jobs that ended, by final state.", labels=["outcome"])
    for state in JobState:
        if state.terminal:
            finished.add_metric([state.value], counts.states.get(state.value, 0))
    yield finished
    running = sum(counts.states.get(s.value, 0) for s in (JobState.STARTING, JobState.PROCESSING))
    depth = GaugeMetricFamily(
        "fluid_queue_depth", "Jobs waiting, by model and priority class.", labels=["model", "priority"]
    )
    for labels, waiting in counts.waiting.items():
        depth.add_metric(labels, waiting)
    yield depth
    yield GaugeMetricFamily(
        "fluid_queue_oldest_age_seconds", "Age of the oldest waiting job in seconds.", value=counts.oldest_age_s
    )
    yield GaugeMetricFamily("fluid_jobs_inflight", "Jobs leased by workers now.", value=running)
    yield GaugeMetricFamily(
        "fluid_dead_letter_depth", "Jobs in the dead-letter stream now.", value=counts.dead_letter_depth
    )
    yield GaugeMetricFamily(
        "fluid_stored_bytes", "Bytes of Redis that jobs, images, files and batches take.", value=counts.stored_bytes
    )
    yield CounterMetricFamily("fluid_jobs_expired", "Ended jobs whose record has been deleted.", value=counts.expired)
    yield CounterMetricFamily(
        "fluid_redeliveries", "Jobs requeued because their worker's lease expired.", value=counts.redeliveries
    )
    yield CounterMetricFamily(
        "fluid_fenced_results", "Late results rejected from workers that had lost their lease.", value=counts.fenced
    )
    yield CounterMetricFamily(
        "fluid_dead_lettered", "Jobs moved to the dead-letter stream.", value=counts.dead_lettered
    )


def _fleet(workers: list[WorkerInfo], models: Mapping[str, ModelInfo], now: float) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "fluid_worker_up", "1 if the worker is ready to generate, else 0.", labels=["worker", "model"]
    )
    age = GaugeMetricFamily(
        "fluid_worker_last_heartbeat_age_seconds", "Seconds since the worker's last heartbeat.", labels=["worker"]
    )
    rows = GaugeMetricFamily("fluid_worker_rows", "Rows (images) being decoded now.", labels=["worker"])
    runs = GaugeMetricFamily(
        "fluid_worker_info", "Always 1; the labels describe the worker.", labels=["worker", "kernels", "device"]
    )
    for w in workers:
        runs.add_metric([w.id, w.kernels, w.device], 1)
        up.add_metric([w.id, w.model], float(w.ready))
        age.add_metric([w.id], max(0.0, now - w.heartbeat_at))
        rows.add_metric([w.id], w.rows)
    info = GaugeMetricFamily(
        "fluid_model_info", "Always 1; the labels describe the model.", labels=["model", "family", "checkpoint"]
    )
    for m in models.values():
        info.add_metric([m.id, m.family, m.checkpoint_sha256[:12]], 1)
    yield from (up, age, rows, runs, info)


def _worker(stats: Mapping[str, float]) -> Iterator[Metric]:
    """Yield families from the workers' shared hash; a metric that has not been counted yet has no samples."""
    parts: defaultdict[str, defaultdict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for name, value in stats.items():
        metric, _, rest = name.partition("|")
        label, _, part = rest.rpartition("|")
        parts[metric][label][part] = value
    for name, spec in WORKER_SPECS.items():
        labels = [spec.label] if spec.label else []
        if not spec.buckets:
            counter = CounterMetricFamily(name.removesuffix("_total"), spec.help, labels=labels)
            for label, found in parts[name].items():
                counter.add_metric([label] if labels else [], found.get("total", 0.0))
            yield counter
            continue
        histogram = HistogramMetricFamily(name, spec.help, labels=labels)
        for label, found in parts[name].items():
            histogram.add_metric(
                [label] if labels else [], _cumulative(found, spec.buckets), sum_value=found.get("sum", 0.0)
            )
        yield histogram


def _cumulative(found: Mapping[str, float], bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    """Turn the single buckets that Redis stores into the running totals that Prometheus expects."""
    total, buckets = 0.0, []
    for bound in (*map(str, bounds), "+Inf"):
        total += found.get(bound, 0)
        buckets.append((bound, total))
    return buckets
