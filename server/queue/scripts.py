"""The Lua scripts, each one atomic step, and the connection that runs them for both sides of the queue."""

from collections.abc import Awaitable, Callable, Iterable
from importlib import resources
from typing import Any, cast

from server.queue.keys import Keys
from server.queue.redis_client import Client
from server.settings import Settings

SCRIPTS = (
    "enqueue", "take", "reclaim", "pulse", "save", "preview", "finish", "give_back", "cancel", "place", "sweep",
    "follow", "claim", "rate", "batch_create", "batch_move",
)  # fmt: skip


class QueueConnection:
    """What the gateway's and the workers' side of the queue share: Redis, the names of its keys, the scripts."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        self.redis = redis
        self.keys = Keys(settings.namespace)
        self.ttl_s = settings.result_ttl_s
        self._scripts = {name: redis.register_script(load_script(name)) for name in SCRIPTS}

    async def run(self, name: str, args: Iterable[Any]) -> Any:
        call = cast(Callable[..., Awaitable[Any]], self._scripts[name])
        return await call(keys=[self.keys.root], args=list(args))


def load_script(name: str) -> str:
    folder = resources.files("server.queue") / "lua"
    return (folder / "common.lua").read_text() + "\n" + (folder / f"{name}.lua").read_text()
