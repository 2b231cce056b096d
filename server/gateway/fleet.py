"""The gateway's view of workers and models, read from Redis at most a few times per second."""

import time

from server.errors import NoWorkers
from server.model_info import ModelInfo
from server.queue.registry import Registry, WorkerInfo

FRESH_S = 0.5  # a dead worker is noticed after DEAD_AFTER_S anyway; this only spares Redis under load


class Fleet:
    """Who can draw what, right now."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._read_at = float("-inf")
        self._workers: list[WorkerInfo] = []
        self._models: dict[str, ModelInfo] = {}

    async def refresh(self) -> None:
        if time.monotonic() - self._read_at < FRESH_S:
            return
        self._workers = await self._registry.workers()
        self._models = await self._registry.models()
        self._read_at = time.monotonic()

    async def workers(self) -> list[WorkerInfo]:
        await self.refresh()
        return self._workers

    async def models(self) -> dict[str, ModelInfo]:
        """Every model ever published here; jobs for them are accepted even while no worker is up."""
        await self.refresh()
        if not self._models:
            raise NoWorkers(
                "No worker has introduced its model yet. Start one (`fluid worker`) or wait for it to load.",
                retry_after_s=5,
            )
        return self._models

    async def default_model(self) -> str:
        """The model of a live worker, else the first known one."""
        models = await self.models()
        served = [w.model for w in self._workers if w.model in models]
        return min(served) if served else min(models)

    async def require_worker(self, model: str) -> None:
        """Synchronous callers should learn at once that nobody will answer them."""
        if not any(w.ready and w.model == model for w in await self.workers()):
            raise NoWorkers(
                f"No live worker serves {model} right now. POST /v1/jobs queues it until one is back.",
                retry_after_s=5,
            )

    async def serves(self, model: str) -> bool:
        """Whether a live worker draws with it, or is about to."""
        return any(w.model == model for w in await self.workers())

    async def eta_s(self, model: str, work_ahead: float) -> float | None:
        """About how long until a job with so much work ahead begins; None if nobody draws.

        From what the workers measured while they were busy. Rows free up all the time, so of what is in rows half
        counts; none of it while there is a free row.
        """
        ready = [w for w in await self.workers() if w.ready and w.model == model]
        row_steps_per_s = sum(w.row_steps_per_s for w in ready)
        if not row_steps_per_s:
            return None
        running = 0 if any(w.rows < w.max_rows for w in ready) else sum(w.work_left for w in ready)
        return (work_ahead + running / 2) / row_steps_per_s

    async def unready_reason(self) -> str | None:
        """None if a live worker has drawn its canary picture; else what is missing."""
        workers = await self.workers()
        if any(w.ready for w in workers):
            return None
        if not workers:
            return "no live worker"
        return "; ".join(f"worker {w.id} is {w.state}" + (f" ({w.note})" if w.note else "") for w in workers)
