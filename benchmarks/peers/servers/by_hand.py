"""A service written by hand: FastAPI runs the endpoint in its thread pool, and a lock keeps the engine to one thread.

python -m benchmarks.peers.servers.by_hand PORT
"""

from __future__ import annotations

import sys
import threading

import uvicorn
from fastapi import FastAPI, Response

from benchmarks.peers.servers.body import Body
from benchmarks.peers.servers.work import PATH, Images


def create_app() -> FastAPI:
    app, images, lock = FastAPI(), Images(), threading.Lock()

    @app.post(PATH)
    def generate(body: Body) -> Response:
        with lock:
            [png] = images.generate([body.model_dump()])
        return Response(png, media_type="image/png")

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
