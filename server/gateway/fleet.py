"""The gateway's view of workers and models, read from Redis at most a few times per second."""

import logging
import time
from collections.abc import Mapping

from server.background import SingleFlight
from server.errors import NoWorkers
from server.model_info import ModelInfo
from server.queue.registry import Registry, WorkerInfo, current_models

log = logging.getLogger(__name__)
CACHE_S = 0.5  # spares Redis under load; a dead worker is noticed only after DEAD_AFTER_S anyway


class Fleet:
    """The live workers and known models, cached for CACHE_S."""

    def __init__(self, registry: Registry, default: str = "", aliases: Mapping[str, str] | None = None) -> None:
        """`default` is the model of requests that name none, or an alias of it; "": one that is up."""
        self._registry = registry
        self._default = default
        self._aliases = aliases or {}
        self._replaced: dict[str, str] = {}
        self._warned = ""
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
        self._replaced = await self._registry.replaced()
        self._models = current_models(await self._registry.models(), self._workers, self._replaced)
        self._read_at = time.monotonic()

    async def workers(self) -> list[WorkerInfo]:
        """Return the live workers, ready or not."""
        await self.refresh()
        return self._workers

    async def models(self) -> dict[str, ModelInfo]:
        """Return every model that a worker has registered, but those that a reload has replaced everywhere; jobs for
        them are accepted even while no worker is up.

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
        """Return FLUID_DEFAULT_MODEL, known or not, or what a reload has put in its place; without it the first by name
        that a live worker serves, or else the first that is known."""
        models = await self.models()
        if self._default:
            await self.default_trouble()
            return self._in_place_of(self._default)
        served = [w.model for w in self._workers if w.model in models]
        return min(served) if served else min(models)

    def _in_place_of(self, name: str) -> str:
        """The id of the model that reloads have put in the place of this one, if it is gone, else the name itself."""
        target, seen = name if name in self._models else self._aliases.get(name, name), set[str]()
        while target not in self._models and target in self._replaced and target not in seen:
            seen.add(target)
            target = self._replaced[target]
        return target if seen and target in self._models else name

    async def default_trouble(self) -> str:
        """Return what is wrong with FLUID_DEFAULT_MODEL, or "" if it names a known model; log what is new."""
        await self.refresh()
        name, trouble = self._default, ""
        if name and (found := self._in_place_of(name)) != name:
            trouble = f"a reload has replaced {name}, the FLUID_DEFAULT_MODEL: requests without 'model' get {found}"
        elif name and self._models and self._models.keys().isdisjoint({name, self._aliases.get(name, name)}):
            trouble = f"no worker has loaded {name}, the FLUID_DEFAULT_MODEL: requests without 'model' get 503"
        if trouble and trouble != self._warned:
            log.warning("%s", trouble)
        self._warned = trouble
        return trouble

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
