"""Ray Serve: `@serve.batch`, and as many ongoing requests per replica as fill a batch while the one before it runs.

python -m benchmarks.peers.servers.ray_app PORT FOLDER
"""

from __future__ import annotations

import asyncio
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.servers.work import PATH, ROWS, Images

BATCH_WAIT_S = 0.01  # the default


@serve.deployment(max_ongoing_requests=2 * ROWS)
class ImageDeployment:
    """One replica. The engine runs in a thread, so that the replica's event loop keeps accepting requests."""

    def __init__(self) -> None:
        self.images = Images()
        self.engine_thread = ThreadPoolExecutor(1)

    @serve.batch(max_batch_size=ROWS, batch_wait_timeout_s=BATCH_WAIT_S)
    async def batch(self, bodies: list[dict[str, Any]]) -> list[bytes]:
        return await asyncio.get_running_loop().run_in_executor(self.engine_thread, self.images.generate, bodies)

    async def __call__(self, request: Request) -> Response:
        return Response(await self.batch(await request.json()), media_type="image/png")


if __name__ == "__main__":
    ray.init(include_dashboard=False, configure_logging=False, log_to_driver=False, _temp_dir=sys.argv[2])
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(ImageDeployment.bind(), route_prefix=PATH)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
