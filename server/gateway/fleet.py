"""The gateway's view of workers and models, read from Redis at most a few times per second."""

import time

from server.background import SingleFlight
from server.errors import NoWorkers
from server.model_info import ModelInfo
from server.queue.registry import Registry, WorkerInfo

CACHE_S = 0.5  # spares Redis under load; a dead worker is noticed only after DEAD_AFTER_S anyway


class Fleet:
    """The live workers and known models, cached for CACHE_S."""

    def __init__(self, registry: Registry, default: str = "") -> None:
        """`default` is the model of requests that name none; "": one that is up."""
        self._registry = registry
        self._default = default
        self._read_at = float("-inf")
        self._reading = SingleFlight(self._read)
        self._workers: list[WorkerInfo] = []
        self._models: dict[str, ModelInfo] = {}

    async def refresh(self) -> None:
        """Read workers and models again if the cache has expired."""
        if time.monotonic() - self._read_at >= CACHE_S:
            await self._reading.run()  # once for all requests that arrive meanwhile

    async def _read(self) -> None:
        self._workers = await self._registry.workers()
        self._models = await self._registry.models()
        self._read_at = time.monotonic()

    async def workers(self) -> list[WorkerInfo]:
        """Return the live workers, ready or not."""
        await self.refresh()
        return self._workers

    async def models(self) -> dict[str, ModelInfo]:
        """Return every model that a worker ever registered; jobs for them are accepted even while no worker is up.

        Raises:
            NoWorkers: no worker has registered a model yet.
        """
        await self.refresh()
        if not self._models:
            raise NoWorkers(
                "No worker has registered a model yet. Start a worker (`fluid worker`), or wait for it to load.",
                retry_after_s=5,
            )
        return self._models

    async def default_model(self) -> str:
        """Return FLUID_DEFAULT_MODEL, known or not; without it the first by name that a live worker serves, or else the
        first that is known."""
        models = await self.models()
        if self._default:
            return self._default
        served = [w.model for w in self._workers if w.model in models]
        return min(served) if served else min(models)

    async def require_worker(self, model: str) -> None:
        """Reject a synchronous request at once when no ready worker could answer it.

        Raises:
            NoWorkers: no live worker serves the model.
        """
        ready = {w.model for w in await self.workers() if w.ready}
        if model not in ready:
            others = f" ({', '.join(sorted(ready))} can be generated with)" if ready else ""
            raise NoWorkers(
                f"No live worker serves {model} right now{others}. POST /v1/jobs queues it until one is back.",
                retry_after_s=5,
            )

    async def readiness(self) -> dict[str, bool]:
        """Return, for every known model, whether a live worker can generate with it now."""
        await self.refresh()
        ready = {w.model for w in self._workers if w.ready}
        return {model: model in ready for model in sorted(self._models)}

    async def serves(self, model: str) -> bool:
        """Return true if a live worker serves the model or is loading it."""
        return any(w.model == model for w in await self.workers())

    async def eta_s(self, model: str, work_ahead: float) -> float | None:
        """Estimate the seconds until a job with `work_ahead` row-steps queued before it starts; None without a rate.

        The rate is what the ready workers measured while busy. Rows free up all the time, so only half of the work
        in running rows counts, and none of it while any row is free.
        """
        ready = [w for w in await self.workers() if w.ready and w.model == model]
        row_steps_per_s = sum(w.row_steps_per_s for w in ready)
        if not row_steps_per_s:
            return None
        running = 0 if any(w.rows < w.max_rows for w in ready) else sum(w.work_left for w in ready)
        return (work_ahead + running / 2) / row_steps_per_s

    async def unready_reason(self) -> str | None:
        """Return None if a live worker has generated its canary image, or else the reason why none has."""
        workers = await self.workers()
        if any(w.ready for w in workers):
            return None
        if not workers:
            return "no live worker"
        return "; ".join(f"worker {w.id} is {w.state}" + (f" ({w.note})" if w.note else "") for w in workers)
