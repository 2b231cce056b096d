"""Workers as actors of a Ray cluster, as many as the waiting work asks for (`fluid serve --on ray`).

Each actor runs `fluid worker` as a child process: a worker is the same program everywhere, and Redis stays the queue,
so a node that dies costs what any killed worker costs, a delay. Ray places actors with their CPUs or GPUs. This process
restarts those that die, starts more while row-steps wait, and drains those that are no longer needed.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from server.errors import ConfigError
from server.launcher.children import Child, Restarts
from server.launcher.supervisor import Supervisor
from server.launcher.workers import Plan
from server.queue.redis_client import connect
from server.queue.scripts import QueueConnection
from server.queue.statistics import QueueCounts, queue_counts
from server.setting_values import PREFIX
from server.settings import Settings

log = logging.getLogger(__name__)
SOCKET_TIMEOUT_S = 5.0
GATEWAYS_ALONE = ("FLUID_API_KEYS", "FLUID_API_KEYS_FILE", "FLUID_API_KEY", "FLUID_WEBHOOK_SECRET")
POLL_S = 1.0  # between two looks at an actor, and at the queue


@dataclass(frozen=True, slots=True)
class Scale:
    """How many workers of each model, and when one more or one fewer."""

    minimum: int = 1
    maximum: int = 4
    row_steps: int = 2048  #: one worker for each of these that wait: images times autoregressive steps
    cooldown_s: float = 300.0  #: how long fewer must be enough before one is drained

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= self.maximum:
            raise ConfigError(
                f"--min-workers is {self.minimum} and --max-workers {self.maximum}: the first must be at least 1, and "
                "at most the second."
            )
        if self.row_steps < 1 or not 0 <= self.cooldown_s < math.inf:
            raise ConfigError(
                f"--row-steps is {self.row_steps} and --cooldown {self.cooldown_s:g}: give at least 1 and 0."
            )

    def wanted(self, waiting: int, running: int, rows: int) -> int:
        """Number of workers for so many waiting row-steps and running jobs, with `rows` rows each."""
        need = max(math.ceil(waiting / self.row_steps), math.ceil(running / rows))
        return min(self.maximum, max(self.minimum, need))


class _WorkerProcess:
    """The actor: a worker as a child process of Ray's."""

    def __init__(self, env: Mapping[str, str]) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self._child = Child("worker", {**own, **env})
        self._child.start()

    def watch(self) -> str:
        """Restart the worker if it has crashed; return why it cannot start, or nothing."""
        try:
            self._child.watch()
        except ConfigError as error:
            return str(error)
        return ""

    def stop(self, grace_s: float) -> None:
        asyncio.run(self._child.stop(grace_s))


class RayWorker:
    """A worker of the supervisor that runs as an actor; it has the methods of a `Child`."""

    role = "worker"

    def __init__(
        self, ray: Any, env: Mapping[str, str], resources: Mapping[str, float], model: str = "", *, proven: bool = False
    ) -> None:
        """`proven`: another worker with these settings has run, so that one that cannot start has a bad node."""
        self.model, self.proven = model, proven
        self._ray, self._env, self._resources = ray, env, resources
        self._restarts = Restarts()
        self._actor: Any = None
        self._answer: Any = None  # of the actor's `watch`
        self._asked_at = 0.0

    def start(self) -> None:
        self._restarts.started()
        actor = self._ray.remote(**self._resources)(_WorkerProcess)
        self._actor = actor.remote(self._env)
        self._ask()

    def _ask(self) -> None:
        self._answer, self._asked_at = self._actor.watch.remote(), time.monotonic()

    def watch(self) -> None:
        """Start the actor again if it has died, elsewhere if its node has. Raises ConfigError if that cannot help."""
        if self._actor is None:
            if self._restarts.due:
                self.start()
            return
        done, _ = self._ray.wait([self._answer], timeout=0)
        if not done or time.monotonic() - self._asked_at < POLL_S:
            return
        try:
            why_not = self._ray.get(self._answer)
        except self._ray.exceptions.RayError as error:
            self._give_up(f"has died ({type(error).__name__})")
            return
        if not why_not:
            self.proven = True
            self._ask()
            return
        if not self.proven:
            raise ConfigError(why_not)
        self.kill()
        self._give_up(f"cannot start on its node ({why_not})")

    def _give_up(self, why: str) -> None:
        self._actor = None
        log.error("a worker on Ray %s; starting another in %g s", why, self._restarts.exited())

    def kill(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor)

    async def stop(self, grace_s: float) -> None:
        """Drain the worker, then end its actor."""
        if self._actor is None:
            return
        try:
            draining = self._actor.stop.remote(grace_s)
            await asyncio.to_thread(self._ray.get, draining, timeout=grace_s + 5)
        except self._ray.exceptions.RayError as error:
            log.warning("a worker on Ray could not be drained (%s); its jobs are redelivered", type(error).__name__)
        self.kill()
        self._actor = None


class RaySupervisor(Supervisor):
    """A gateway on this host, and workers on the nodes of a Ray cluster."""

    def __init__(self, settings: Settings, scale: Scale, *, banner: bool = True, models: Mapping[str, str]) -> None:
        """`models`: checkpoint of each model id, the default one first.

        Raises:
            ConfigError: Ray is not installed, or the nodes could not reach the queue.
        """
        plan = Plan([], f"workers on Ray: {scale.minimum} to {scale.maximum} of each model", tuple(models))
        super().__init__(settings, banner=banner, plan=plan)
        if not settings.redis_url:
            raise ConfigError(
                "--on ray needs FLUID_REDIS_URL: the nodes cannot reach the embedded Valkey of this host."
            )
        self._scale, self._checkpoints = scale, dict(models)
        self._ray, self._resources = _connect(settings)
        self._queue = QueueConnection(connect(settings.redis_url, SOCKET_TIMEOUT_S), settings)
        self._enough_since: dict[str, float] = {}
        self._env: dict[str, str] = {}
        self._draining: set[asyncio.Task[None]] = set()

    def _start_children(self, env: dict[str, str], first: list[Child]) -> None:
        super()._start_children(env, first)
        # With the credentials of FLUID_RESULTS, but not with what is the gateway's alone.
        self._env = {
            name: value
            for name, value in env.items()
            if name.startswith((PREFIX, "AWS_")) and name not in GATEWAYS_ALONE
        }
        for model in self._checkpoints:
            for _ in range(self._scale.minimum):
                self._add(model)

    def _add(self, model: str) -> None:
        env = self._env | {"FLUID_CHECKPOINT": self._checkpoints[model]}
        proven = any(isinstance(child, RayWorker) and child.proven for child in self._children)
        worker = RayWorker(self._ray, env, self._resources, model, proven=proven)
        self._children.append(worker)
        worker.start()

    async def _watch(self) -> None:
        scaling = asyncio.create_task(self._follow_the_queue())
        try:
            await super()._watch()
        finally:
            scaling.cancel()

    async def _follow_the_queue(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                counts = await queue_counts(self._queue)
            except (RedisError, OSError) as error:
                log.warning("the queue cannot be read (%s); the number of workers stays", type(error).__name__)
                continue
            try:
                for model in self._checkpoints:
                    self._adjust(model, counts)
            except self._ray.exceptions.RayError as error:
                log.error("the number of workers cannot be changed (%s); trying again", type(error).__name__)

    def _adjust(self, model: str, counts: QueueCounts) -> None:
        """Add the workers that are missing; drain one if fewer have been enough for the cooldown."""
        mine = [child for child in self._children if isinstance(child, RayWorker) and child.model == model]
        alone = len(self._checkpoints) == 1  # a service of one model need not know its id
        waiting = sum(counts.waiting_work.values()) if alone else counts.waiting_work.get(model, 0)
        running = counts.running if alone else counts.leases_by_model.get(model, 0)
        wanted = self._scale.wanted(max(0, waiting), running, self.settings.max_rows)
        now = time.monotonic()
        for _ in range(wanted - len(mine)):
            log.info("%d row-steps of %s wait: adding worker %d", waiting, model, len(mine) + 1)
            self._add(model)
        if wanted >= len(mine):
            self._enough_since[model] = now
        elif now - self._enough_since.setdefault(model, now) >= self._scale.cooldown_s:
            self._enough_since[model] = now
            log.info("%d workers of %s are enough: draining one", len(mine) - 1, model)
            self._children.remove(mine[-1])
            task = asyncio.create_task(mine[-1].stop(self.settings.drain_s + 5))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)

    async def _shut_down(self) -> None:
        await super()._shut_down()
        await asyncio.gather(*self._draining)
        await self._queue.redis.aclose()
        self._ray.shutdown()


def _connect(settings: Settings) -> tuple[Any, dict[str, float]]:
    """Ray, connected to the cluster of RAY_ADDRESS, or to one that it starts here; and the resources of a worker."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--on ray needs Ray: pip install '.[ray]' in a clone, on every node.") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that starts here reports nothing to its makers
    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"There is no Ray cluster at RAY_ADDRESS ({error}): start one with `ray start --head`."
        ) from error
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = settings.device != "cpu" and has.get("GPU", 0) > 0
    if settings.device == "cuda" and not gpus:
        raise ConfigError("FLUID_DEVICE is cuda, but the Ray cluster has no GPUs: set FLUID_DEVICE=cpu or auto.")
    if gpus:
        return ray, {"num_gpus": settings.tensor_parallel, "num_cpus": 1}
    return ray, {"num_cpus": max(1, settings.threads) * settings.tensor_parallel}
