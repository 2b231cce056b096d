"""FastAPI that enqueues each request as a job of arq and waits for its result.

python -m benchmarks.peers.servers.arq_gateway PORT SOCKET_OF_REDIS
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from arq import create_pool
from arq.connections import RedisSettings
from fastapi import FastAPI, Request, Response

from benchmarks.peers.servers.body import Body
from benchmarks.peers.servers.work import PATH

#: Time between looks at a result. The default of 0.5 s would decide every figure.
POLL_S = 0.02
TIMEOUT_S = 120


def create_app(socket: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.pool = await create_pool(RedisSettings(unix_socket_path=socket))
        yield
        await app.state.pool.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post(PATH)
    async def generate(body: Body, request: Request) -> Response:
        job = await request.app.state.pool.enqueue_job("generate", body.model_dump())
        return Response(await job.result(TIMEOUT_S, poll_delay=POLL_S), media_type="image/png")

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
