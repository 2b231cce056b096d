"""The metrics that workers collect. Each heartbeat adds them to a hash in Redis, so totals survive a restart.

server/gateway/metrics.py exports them, together with its own and the queue's, in one scrape.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

SECONDS = tuple(round(0.001 * 1.8**i, 6) for i in range(21))  # 1 ms to 127 s
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

WORKER_TASKS = ("heartbeat", "lease renewal", "cancel listener", "watchdog", "reloader", "job intake", "result store")


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric of the workers: a histogram, or a counter if it has no buckets."""

    help: str
    label: str = ""
    buckets: tuple[float, ...] = ()
    values: tuple[str, ...] = ()  #: those of the label that are known beforehand; their counters begin at 0


WORKER_SPECS: Mapping[str, Spec] = {
    "fluid_queue_wait_seconds": Spec(
        "Seconds from acceptance until a worker took the job.", label="model", buckets=SECONDS
    ),
    "fluid_job_latency_seconds": Spec("Seconds from acceptance to success.", label="model", buckets=SECONDS),
    "fluid_stage_duration_seconds": Spec(
        "Seconds spent in each stage of a job.",
        label="stage",
        buckets=SECONDS,
        values=("admit", "ar_step", "encode", "store"),
    ),
    "fluid_batch_size": Spec("Rows (images) that shared a decoding step.", buckets=ROWS),
    "fluid_images_total": Spec("Images generated.", label="model"),
    "fluid_lease_lost_total": Spec("Leases that a worker lost while it still ran the job."),
    "fluid_snapshots_total": Spec("Snapshots of partly decoded rows that were stored."),
    "fluid_resumed_rows_total": Spec("Rows that resumed from a snapshot."),
    "fluid_preemptions_total": Spec(
        "Rows that were paused for an image of a caller with fewer rows, or of a higher class than low.",
        label="reason",
        values=("share", "class"),
    ),
    "fluid_reloads_total": Spec("Checkpoints replaced by `fluid reload`."),
    "fluid_engine_failures_total": Spec(
        "Exceptions raised by the engine, by stage.",
        label="stage",
        values=("load", "canary", "admit", "restore", "ar_step", "image"),
    ),
    "fluid_worker_task_crashes_total": Spec(
        "Crashes of background tasks of workers; each is restarted.", label="task", values=WORKER_TASKS
    ),
    "fluid_result_store_failures_total": Spec("Failed writes of finished images into the store of FLUID_RESULTS."),
    "fluid_worker_starts_total": Spec("Worker processes that became ready."),
}


class Tally:
    """A worker's counts and exemplars since its last heartbeat; `drain` returns increments for HINCRBYFLOAT."""

    def __init__(self) -> None:
        self._values: defaultdict[str, float] = defaultdict(float)
        self._exemplars: dict[str, str] = {}  # by bucket, the trace, value and time of the last traced observation

    def count(self, name: str, label: str = "", by: float = 1.0) -> None:
        self._values[_field(name, label, "total")] += by

    def observe(self, name: str, value: float, label: str = "", *, trace_id: str = "") -> None:
        """Add one observation to the single bucket of the histogram that it falls into; its trace is an exemplar."""
        bounds = WORKER_SPECS[name].buckets
        at = bisect_left(bounds, value)
        bucket = _field(name, label, str(bounds[at]) if at < len(bounds) else "+Inf")
        self._values[bucket] += 1
        if trace_id:
            self._exemplars[bucket] = f"{trace_id} {value} {time.time():.3f}"
        self._values[_field(name, label, "sum")] += value

    def drain(self) -> dict[str, float]:
        values, self._values = dict(self._values), defaultdict(float)
        return values

    def drain_exemplars(self) -> dict[str, str]:
        exemplars, self._exemplars = self._exemplars, {}
        return exemplars

    def restore(self, values: Mapping[str, float], exemplars: Mapping[str, str]) -> None:
        """Put back what was drained for a heartbeat that did not reach Redis; newer exemplars replace these."""
        for name, value in values.items():
            self._values[name] += value
        self._exemplars = {**exemplars, **self._exemplars}


def _field(name: str, label: str, part: str) -> str:
    return f"{name}|{label}|{part}"
