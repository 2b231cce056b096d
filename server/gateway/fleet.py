"""The gateway's view of workers and models, read from Redis at most a few times per second."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from server.background import SingleFlight
from server.errors import NoWorkers
from server.gateway.requests.client_mapping import NO_MAPPING, ClientMapping
from server.model_info import ModelInfo
from server.queue.registry import Registry, WorkerInfo

log = logging.getLogger(__name__)
CACHE_S = 0.5  # spares Redis under load; a dead worker is noticed only after DEAD_AFTER_S anyway


class Fleet:
    """The live workers and known models, cached for CACHE_S."""

    def __init__(self, registry: Registry, default: str = "", mapping: ClientMapping = NO_MAPPING) -> None:
        """`default` is the model of requests that name none, or an alias of it; "": one that is up."""
        self.mapping = mapping  #: with what reloads have put in the place of models that its aliases name
        self.warnings: list[str] = []  #: what is wrong with FLUID_DEFAULT_MODEL and FLUID_MODEL_ALIASES
        self._registry = registry
        self._default = default
        self._aliases = mapping.aliases
        self._replaced: dict[str, str] = {}
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
        self._models = await self._registry.current_models(self._workers, self._replaced)
        followed = {name: self._in_place_of(model) for name, model in self._aliases.items()}
        self.mapping = replace(self.mapping, aliases=followed)
        warnings = list(self._trouble(followed))
        for each in set(warnings) - set(self.warnings):
            log.warning("%s", each)
        self.warnings = warnings
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
            target = self._target(self._default)
            return heir if (heir := self._in_place_of(target)) != target else self._default
        served = [w.model for w in self._workers if w.model in models]
        return min(served) if served else min(models)

    async def mapping_since(self, began: float, model: object) -> ClientMapping:
        """The mapping for a request that was accepted at `began`, by Redis' clock, and waited unresolved since: if it
        names a model that was served after that, and replaced by a reload, it gets the one in its place."""
        await self.refresh()
        if not isinstance(model, str) or (heir := self._in_place_of(model)) == model:
            return self.mapping
        if (await self._registry.last_served()).get(model, 0.0) < began:
            return self.mapping
        return replace(self.mapping, aliases={**self.mapping.aliases, model: heir})

    def _target(self, name: str) -> str:
        """The id of the model that a name in a request stands for, known or not."""
        return name if name in self._models else self._aliases.get(name, name)

    def _in_place_of(self, model: str) -> str:
        """The id of the model that reloads have put in the place of this one, if it is gone, else the same id."""
        target, seen = model, set[str]()
        while target not in self._models and target in self._replaced and target not in seen:
            seen.add(target)
            target = self._replaced[target]
        return target if target in self._models else model

    def _trouble(self, followed: Mapping[str, str]) -> Iterator[str]:
        """What an operator should mend in FLUID_DEFAULT_MODEL and FLUID_MODEL_ALIASES."""
        name, target = self._default, self._target(self._default)
        if name and (heir := self._in_place_of(target)) != target:
            yield f"a reload has replaced {name}, the FLUID_DEFAULT_MODEL: requests without 'model' get {heir}"
        elif name and self._models and target not in self._models:
            yield f"no worker has loaded {name}, the FLUID_DEFAULT_MODEL: requests without 'model' get 503"
        for alias, model in self._aliases.items():
            if (heir := followed[alias]) != model:
                yield f"a reload has replaced {model}, the {alias} of FLUID_MODEL_ALIASES: it stands for {heir}"

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
