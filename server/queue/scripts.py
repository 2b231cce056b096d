"""The Lua scripts, each one atomic step, and the connection that runs them for both sides of the queue."""

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError

from server.batch_format import OVER
from server.jobs import PRIORITIES, TERMINAL
from server.queue.keys import FixedKey, Keys, KeyTemplate
from server.queue.redis_client import Client
from server.settings import Settings

SCRIPTS = (
    "enqueue", "take", "reclaim", "renew", "save", "store", "preview", "finish", "requeue", "cancel", "place", "sweep",
    "follow", "claim_due", "claim_webhooks", "rate_limit", "batch_create", "batch_index", "batch_move", "file_create",
    "file_delete",
)  # fmt: skip

#: Flags of scripts, which a `#!lua` line states. A script with such a line is refused as a whole where it could not
#: write: by a replica, which would otherwise run it until its first write, and find a stale queue empty; with a full
#: memory or disk, which would leave it half done. What ends or keeps an accepted job still runs in a full memory.
_ALLOW_OOM = ("renew", "finish", "requeue", "cancel", "sweep", "file_delete")
FLAGS = {"place": "no-writes", **dict.fromkeys(_ALLOW_OOM, "allow-oom")}


#: More than this in one command would delay the others on the shared connection.
SHARED_BYTES = 256 << 10


class QueueConnection:
    """The connection that both sides of the queue share: Redis, the names of its keys, the scripts."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        self.redis = redis
        self.keys = Keys(settings.namespace)
        self.ttl_s = settings.result_ttl_s
        self._scripts = {name: redis.register_script(load_script(name)) for name in SCRIPTS}

    async def run(self, name: str, args: Mapping[str, Any], *data: bytes) -> Any:
        """Run a script, which reads `args` as the Lua table `args`, without those that are None, and `data` as
        ARGV[2] and on: JSON cannot hold bytes."""
        script = self._scripts[name]
        named = json.dumps({key: value for key, value in args.items() if value is not None})
        is_small = sum(map(len, data)) <= SHARED_BYTES
        send = self.redis.call if is_small else self.redis.execute_command
        try:
            return await send("EVALSHA", script.sha, 1, self.keys.root, named, *data)
        except NoScriptError:  # EVAL, because SCRIPT LOAD on another connection may reach another server at a failover
            return await send("EVAL", script.script, 1, self.keys.root, named, *data)


def load_script(name: str) -> str:
    """Join the line of flags, the prelude, common.lua and the script into one text."""
    folder = resources.files("server.queue") / "lua"
    source = (folder / "common.lua").read_text() + "\n" + (folder / f"{name}.lua").read_text()
    flags = f" flags={FLAGS[name]}" if name in FLAGS else ""
    return f"#!lua{flags}\n{prelude(source)}{source}"


def prelude(source: str) -> str:
    """Build the prelude: the arguments, the names of states and priorities, and the names of the keys in `source`.

    Only of those keys, because Redis builds the table again in every call.

    Raises:
        KeyError: `source` uses a key that Keys does not declare.
    """
    used = sorted(set(re.findall(r"\bkeys\.(\w+)", source)))
    declared = {name: key for name, key in vars(Keys).items() if isinstance(key, FixedKey | KeyTemplate)}
    lines = [f"  {name} = {_lua_key(declared[name])}," for name in used]
    return "\n".join((
        "local args, root = cjson.decode(ARGV[1]), KEYS[1]",
        "local PRIORITIES = {" + ", ".join(f"'{name}'" for name in PRIORITIES) + "}",
        "local TERMINAL = {" + ", ".join(f"{state} = true" for state in TERMINAL) + "}",
        "local BATCH_OVER = {" + ", ".join(f"{status} = true" for status in OVER) + "}",
        "local keys = {",
        *lines,
        "}\n",
    ))  # fmt: skip


def _lua_key(key: FixedKey | KeyTemplate) -> str:
    start = f"root .. ':{key.parts[0]}"
    if isinstance(key, FixedKey):
        return f"{start}'"
    parameters, joined = ", ".join(key.parameters), " .. ':' .. ".join(key.parameters)
    return f"function({parameters}) return {start}:' .. {joined} end"
