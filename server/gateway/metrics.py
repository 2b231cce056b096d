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
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Exemplar

from server.errors import RequestError
from server.jobs import JobState
from server.metrics import SECONDS, WORKER_SPECS
from server.model_info import ModelInfo
from server.queue.registry import WorkerInfo
from server.queue.statistics import QueueCounts
from server.records import finite, skipped

KINDS = ("sync", "job", "batch")  #: how a job was submitted
WEBHOOK_OUTCOMES = ("delivered", "failed", "given_up", "lost")
RECORDS = ("job", "file", "batch", "heartbeat", "model")  #: that lists are made of
SERVER_ERRORS = ("500", "503", "504")


class GatewayMetrics:
    """Figures of the gateway itself. One registry per app, so that tests do not share counters.

    Every label set that is known beforehand begins at 0: Prometheus' increase() does not see the first burst of a
    counter that is born with it.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
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
        for outcome in WEBHOOK_OUTCOMES:
            self.webhooks.labels(outcome)
        for code in sorted(_rejection_codes(RequestError)):
            self.rejected.labels(code)

    def count_request(
        self, route: str, method: str, status: int, seconds: float, exemplar: dict[str, str] | None = None
    ) -> None:
        """Count and time a request."""
        key = (route, method, status)
        if (found := self._children.get(key)) is None:
            found = self.requests.labels(route, method, str(status)), self.duration.labels(route, method)
            self._children[key] = found
        found[0].inc()
        found[1].observe(seconds, exemplar)

    def expect_tasks(self, names: Iterable[str]) -> None:
        """Begin the counters of these background tasks at 0."""
        for name in names:
            self.bugs.labels(name)

    def expect_requests(self, routes: Iterable[tuple[str, str, int]]) -> None:
        """Begin the counters of each (route, method, status of success) at 0, with their server errors.

        Not the histogram of durations, which no alert counts: it would make the page five times as large.
        """
        for route, method, status in routes:
            for code in (str(status), *SERVER_ERRORS):
                self.requests.labels(route, method, code)


def _rejection_codes(cls: type[RequestError]) -> set[str]:
    own = {cls.code} if cls.rejection else set()
    return own.union(*map(_rejection_codes, cls.__subclasses__()))


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
    last_seen: Mapping[str, float] | None = None,
    lost: Mapping[str, str] | None = None,
    exemplars: Mapping[str, str] | None = None,
) -> bytes:
    """Return the whole page in Prometheus' text format, or with exemplars in OpenMetrics'.

    `last_seen` is the time of the last heartbeat of every worker, also of those that fell silent; `now` and it are Unix
    times of Redis' clock. `lost` is the model of each of the silent ones.
    """
    families = [
        *gateway.registry.collect(),
        *_skipped(),
        *_queue(counts),
        *_fleet(workers, models, lost or {}),
        *_heartbeats({w.id: w.heartbeat_at for w in workers} | dict(last_seen or {}), now),
        *_worker(stats, models, exemplars or {}),
    ]
    write = generate_latest if exemplars is None else openmetrics.generate_latest
    return write(_Scrape(families))


def _skipped() -> Iterator[Metric]:
    family = CounterMetricFamily(
        "fluid_unreadable_records",
        "Records in Redis that this gateway left out of a list because it cannot read them, by kind.",
        labels=["record"],
    )
    for kind, number in (dict.fromkeys(RECORDS, 0) | dict(skipped)).items():
        family.add_metric([kind], number)
    yield family


def _queue(counts: QueueCounts) -> Iterator[Metric]:
    submitted = CounterMetricFamily("fluid_jobs_submitted", "Jobs accepted, by kind of request.", labels=["kind"])
    for kind, value in (dict.fromkeys(KINDS, 0) | dict(counts.submitted)).items():
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
    age = GaugeMetricFamily(
        "fluid_model_queue_oldest_age_seconds", "Age of the model's oldest waiting job in seconds.", labels=["model"]
    )
    work = GaugeMetricFamily(
        "fluid_model_queue_row_steps",
        "Waiting work of the model: images times autoregressive steps.",
        labels=["model"],
    )
    for model, seconds in counts.oldest_age_by_model.items():
        age.add_metric([model], seconds)
        work.add_metric([model], max(0, counts.waiting_work.get(model, 0)))
    yield from (age, work)
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


def _heartbeats(last_seen: Mapping[str, float], now: float) -> Iterator[Metric]:
    """The age of each worker's last heartbeat: of a lost one too, or no alert could ever see it grow."""
    age = GaugeMetricFamily(
        "fluid_worker_last_heartbeat_age_seconds",
        "Seconds since the worker's last heartbeat; shown for 10 minutes after a worker is lost.",
        labels=["worker"],
    )
    for worker, seen in last_seen.items():
        age.add_metric([worker], max(0.0, now - seen))
    yield age


def _fleet(workers: list[WorkerInfo], models: Mapping[str, ModelInfo], lost: Mapping[str, str]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "fluid_worker_up",
        "1 if the worker is ready to generate, else 0; shown for 10 minutes after a worker is lost.",
        labels=["worker", "model"],
    )
    rows = GaugeMetricFamily("fluid_worker_rows", "Rows (images) being decoded now.", labels=["worker"])
    runs = GaugeMetricFamily(
        "fluid_worker_info", "Always 1; the labels describe the worker.", labels=["worker", "kernels", "device"]
    )
    for w in workers:
        runs.add_metric([w.id, w.kernels, w.device], 1)
        up.add_metric([w.id, w.model], float(w.ready))
        rows.add_metric([w.id], w.rows)
    for worker, model in lost.items():
        up.add_metric([worker, model], 0)
    info = GaugeMetricFamily(
        "fluid_model_info", "Always 1; the labels describe the model.", labels=["model", "family", "checkpoint"]
    )
    for m in models.values():
        info.add_metric([m.id, m.family, m.checkpoint_sha256[:12]], 1)
    yield from (up, rows, runs, info)


def _worker(
    stats: Mapping[str, float], models: Mapping[str, ModelInfo], exemplars: Mapping[str, str]
) -> Iterator[Metric]:
    """Yield families from the workers' shared hash; what has not been counted yet is 0 for every known label."""
    parts: defaultdict[str, defaultdict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for name, value in stats.items():
        metric, _, rest = name.partition("|")
        label, _, part = rest.rpartition("|")
        parts[metric][label][part] = value
    for name, spec in WORKER_SPECS.items():
        labels = [spec.label] if spec.label else []
        known = models if spec.label == "model" else spec.values if spec.label else ("",)
        found_by_label = {label: parts[name].get(label, {}) for label in (*known, *parts[name])}
        if not spec.buckets:
            counter = CounterMetricFamily(name.removesuffix("_total"), spec.help, labels=labels)
            for label, found in found_by_label.items():
                counter.add_metric([label] if labels else [], found.get("total", 0.0))
            yield counter
            continue
        histogram = HistogramMetricFamily(name, spec.help, labels=labels)
        for label, found in found_by_label.items():
            traces = {bucket: exemplars.get(f"{name}|{label}|{bucket}", "") for bucket in found}
            buckets = _cumulative(found, spec.buckets, traces)
            histogram.add_metric([label] if labels else [], buckets, sum_value=found.get("sum", 0.0))
        yield histogram


def _cumulative(
    found: Mapping[str, float], bounds: tuple[float, ...], traces: Mapping[str, str]
) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    """Turn the single buckets that Redis stores into the running totals that Prometheus expects."""
    total = 0.0
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    for bound in (*map(str, bounds), "+Inf"):
        total += found.get(bound, 0)
        exemplar = _exemplar(traces.get(bound, ""))
        buckets.append((bound, total, exemplar) if exemplar else (bound, total))
    return buckets


def _exemplar(text: str) -> Exemplar | None:
    """Read a worker's exemplar; None if there is none, or none that this version can read."""
    try:
        trace_id, value, at = text.split()
        return Exemplar({"trace_id": trace_id[:32]}, finite(value), finite(at))
    except ValueError:
        return None
