"""The Lua scripts, each one atomic step, and the connection that runs them for both sides of the queue."""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError

from server.batch_format import OVER
from server.jobs import PRIORITIES, TERMINAL
from server.queue.connection.replication import ReplicatedWrites
from server.queue.keys import Keys, KeyTemplate
from server.queue.redis_client import Client
from server.settings import Settings
from server.storage.object_store import open_store

SCRIPTS = (
    "enqueue", "take", "reclaim", "renew", "save", "store", "preview", "finish", "requeue", "cancel", "place", "sweep",
    "follow", "claim_due", "claim_webhooks", "rate_limit", "batch_create", "batch_index", "batch_move", "batch_line",
    "batch_cancel", "batch_release", "batch_files", "file_create", "file_ready", "file_delete", "store_source",
    "publish_model", "pause_endpoint",
)  # fmt: skip

#: Flags of scripts, which a `#!lua` line states. A script with such a line is refused as a whole where it could not
#: write: by a replica, which would otherwise run it until its first write, and find a stale queue empty; with a full
#: memory or disk, which would leave it half done. What ends or keeps an accepted job still runs in a full memory.
_ALLOW_OOM = (
    "renew", "finish", "requeue", "cancel", "sweep", "file_delete", "batch_cancel", "batch_release", "batch_files",
)  # fmt: skip
FLAGS = {"place": "no-writes", **dict.fromkeys(_ALLOW_OOM, "allow-oom")}


#: More than this in one command would delay the others on the shared connection.
SHARED_BYTES = 256 << 10


class QueueConnection:
    """The connection that both sides of the queue share: Redis, the names of its keys, the scripts."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        self.redis = redis
        self.keys = Keys(settings.namespace)
        self.ttl_s = settings.result_ttl_s
        self.store = open_store(settings.results, settings.namespace)  #: of finished images; None: they lie in Redis
        self._scripts = {name: redis.register_script(load_script(name)) for name in SCRIPTS}
        self.replicated = ReplicatedWrites(
            redis, self.keys.probe, settings.replicas, settings.replica_timeout_s
        )  #: what a 2xx promises

    async def run(self, name: str, args: Mapping[str, Any], *data: bytes, replicated: bool = False) -> Any:
        """Run a script, which reads `args` as the Lua table `args`, without those that are None, and `data` as
        ARGV[2] and on: JSON cannot hold bytes.

        Raises:
            NotReplicated: with `replicated`, too few replicas have what it wrote (FLUID_REPLICAS).
        """
        script = self._scripts[name]
        named = json.dumps({key: value for key, value in args.items() if value is not None})
        is_small = sum(map(len, data)) <= SHARED_BYTES
        send = self.redis.call if is_small else self.redis.execute_command
        if replicated and self.replicated.replicas:
            send = self.replicated.call
        try:
            return await send("EVALSHA", script.sha, 1, self.keys.root, named, *data)
        except NoScriptError:  # EVAL, because SCRIPT LOAD on another connection may reach another server at a failover
            return await send("EVAL", script.script, 1, self.keys.root, named, *data)


@cache
def load_script(name: str) -> str:
    """Join the line of flags, the prelude, what the script uses of common.lua, and the script into one text.

    Redis runs all of it in every call, so each function or table that a script does not use would cost time.
    """
    folder = resources.files("server.queue") / "lua"
    common, script = (re.sub(r" *--.*", "", (folder / f"{each}.lua").read_text()) for each in ("common", name))
    source = _used_parts(PRELUDE + common, script) + script
    flags = f" flags={FLAGS[name]}" if name in FLAGS else ""
    return f"#!lua{flags}\nlocal args, root = cjson.decode(ARGV[1]), KEYS[1]\n{expand_keys(source)}"


PRELUDE = "".join((
    "local PRIORITIES = {" + ", ".join(f"'{name}'" for name in PRIORITIES) + "}\n",
    "local TERMINAL = {" + ", ".join(f"{state} = true" for state in TERMINAL) + "}\n",
    "local BATCH_OVER = {" + ", ".join(f"{status} = true" for status in OVER) + "}\n",
))  # fmt: skip


def _used_parts(source: str, script: str) -> str:
    """Return those top-level functions and values of `source` that the script uses, directly or through others."""
    parts = re.split(r"^(?=local )", source, flags=re.MULTILINE)[1:]
    used, kept = set(re.findall(r"\w+", script)), list[str]()
    for part in reversed(parts):  # a part uses only those before it
        words = re.findall(r"\w+", part)
        if words[2 if words[1] == "function" else 1] in used:
            used.update(words)
            kept.append(part)
    return "".join(reversed(kept))


def expand_keys(source: str) -> str:
    """Replace each `keys.NAME`, with its arguments, by the expression that builds the key.

    Raises:
        KeyError: `source` uses a key that Keys does not declare.
    """
    done, texts = 0, list[str]()
    for found in re.finditer(r"\bkeys\.(\w+)", source):
        key, end, arguments = vars(Keys)[found[1]], found.end(), list[str]()
        if isinstance(key, KeyTemplate):
            arguments, end = _arguments(source, end)
            if len(arguments) != len(key.parameters) or not all(arguments):
                raise TypeError(f"keys.{found[1]} needs {key.parameters}, not {arguments}")
        joined = " .. ':' .. ".join((f"root .. ':{key.parts[0]}'", *(f"({each})" for each in arguments)))
        texts += (source[done : found.start()], f"({joined})")
        done = end
    return "".join((*texts, source[done:]))


def _arguments(source: str, at: int) -> tuple[list[str], int]:
    """Split the arguments of a call whose opening bracket is at `at`; return them and where the call ends."""
    depth, begin, arguments = 0, at + 1, []
    for end in range(at, len(source)):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(source[end], 0)
        if depth == 0 or (depth == 1 and source[end] == ","):
            arguments.append(source[begin:end].strip())
            begin = end + 1
        if depth == 0:
            return arguments, begin
    raise ValueError(f"unclosed bracket: {source[at : at + 40]!r}")
