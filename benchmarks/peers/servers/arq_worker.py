"""The worker of arq: as many jobs at once as fill a batch while the one before it runs.

python -m benchmarks.peers.servers.arq_worker SOCKET_OF_REDIS
"""

from __future__ import annotations

import sys
from typing import Any

from arq.connections import RedisSettings
from arq.worker import Worker

from benchmarks.peers.servers.arq_gateway import POLL_S
from benchmarks.peers.servers.batcher import Batcher
from benchmarks.peers.servers.work import ROWS, Images


async def startup(context: dict[str, Any]) -> None:
    context["batcher"] = Batcher(Images())


async def generate(context: dict[str, Any], body: dict[str, Any]) -> bytes:
    png: bytes = await context["batcher"].generate(body)
    return png


if __name__ == "__main__":
    Worker(
        functions=[generate],
        on_startup=startup,
        redis_settings=RedisSettings(unix_socket_path=sys.argv[1]),
        max_jobs=2 * ROWS,
        poll_delay=POLL_S,
        log_results=False,
    ).run()
