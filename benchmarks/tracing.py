"""What traces cost: processor time of gateway and worker per image without them, with a tenth and with all traced.

`python -m benchmarks.tracing` loads three services of the fake engine in turns, round by round, so that a busy machine
slows all alike. Spans go to a collector on this machine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from benchmarks.load.service import Service, service

RATIOS = {"none": 0.0, "tenth": 0.1, "all": 1.0}
CONNECTIONS = 8


class Sink(BaseHTTPRequestHandler):
    """Takes spans and forgets them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def sink() -> Iterator[str]:
    """Serve a sink, and yield its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        server.shutdown()


async def load(running: Service, images: int) -> dict[str, float]:
    """Generate images over a few connections; milliseconds of processor time per image, by role."""
    before = running.cpu_s()

    async def one_connection(client: httpx.AsyncClient) -> None:
        for _ in range(images // CONNECTIONS):
            while (await client.post("/v1/images/generations", json={"prompt": "a red apple"})).status_code == 503:
                await asyncio.sleep(0.1)  # a machine too busy for heartbeats

    async with httpx.AsyncClient(base_url=running.settings.base_url, timeout=60) as client:
        await asyncio.gather(*(one_connection(client) for _ in range(CONNECTIONS)))
    done = images // CONNECTIONS * CONNECTIONS
    return {role: (used - before[role]) / done * 1000 for role, used in running.cpu_s().items()}


async def measure(rounds: int, images: int) -> dict[str, dict[str, float]]:
    """Median over the rounds, by share of traced requests and role; and each round's ratio to the one without."""
    with sink() as url:
        async with AsyncExitStack() as stack:
            services = {
                name: await stack.enter_async_context(
                    service(1, fake_step_ms=0.0, max_rows=64, traces_url=url if ratio else "", traces_ratio=ratio)
                )
                for name, ratio in RATIOS.items()
            }
            for running in services.values():
                await load(running, images)
            found = [{name: await load(running, images) for name, running in services.items()} for _ in range(rounds)]
    result: dict[str, dict[str, float]] = {}
    for name in RATIOS:
        result[name] = {
            **{
                f"{role}_ms": round(statistics.median(each[name][role] for each in found), 3) for role in found[0][name]
            },
            **{
                f"{role}_ratio": round(statistics.median(each[name][role] / each["none"][role] for each in found), 4)
                for role in ("gateway", "worker")
            },
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--images", type=int, default=1000, help="per round and service")
    args = parser.parse_args()
    result = asyncio.run(measure(args.rounds, args.images))
    for name, row in result.items():
        print(f"{name:6s} " + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
