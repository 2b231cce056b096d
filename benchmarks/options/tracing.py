"""What traces cost: processor time of gateway and worker per image without them, with a tenth and with all traced.

`python -m benchmarks.options.tracing` loads one service of the fake engine, whose callers ask for the traces: equal
processes differ by some percent for as long as they live, which is more than a tenth costs. The shares take turns, so
that a busy machine slows all alike. Spans go to a collector on this machine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from benchmarks.load.service import Service, service

EVERY = {"none": 0, "tenth": 10, "all": 1}  #: the requests that are traced: none, or each of so many
CONNECTIONS = 8
EXPORT_EVERY_S = 5.0  #: the default of the SDK's batch processor
ROLES = ("gateway", "worker")


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


def run_s(pid: int) -> float:
    """Processor time of a process so far, counted by the kernel in nanoseconds for each thread that lives."""
    return sum(map(_task_ns, Path(f"/proc/{pid}/task").iterdir())) / 1e9


def _task_ns(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):  # ended since it was listed
        return 0


def used(running: Service) -> dict[str, float]:
    return {"gateway": run_s(running.gateway.pid), "worker": run_s(running.workers[0].pid)}


async def load(running: Service, images: int, every: int) -> dict[str, float]:
    """Generate images over a few connections; milliseconds of processor time per image, by role."""
    before, each = used(running), images // CONNECTIONS

    async def one_connection(client: httpx.AsyncClient) -> None:
        for number in range(each):
            sampled = every and number % every == 0
            trace = {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{int(bool(sampled)):02x}"}
            body = {"prompt": "a red apple"}
            while (await client.post("/v1/images/generations", json=body, headers=trace)).status_code == 503:
                await asyncio.sleep(0.1)  # a machine too busy for heartbeats

    async with httpx.AsyncClient(base_url=running.settings.base_url, timeout=60) as client:
        await asyncio.gather(*(one_connection(client) for _ in range(CONNECTIONS)))
    await asyncio.sleep(EXPORT_EVERY_S + 0.5)  # until the last spans are sent
    return {role: (now - before[role]) / (each * CONNECTIONS) * 1000 for role, now in used(running).items()}


async def measure(rounds: int, images: int) -> dict[str, dict[str, float]]:
    """Median over the rounds, by share of traced requests and role; and each round's ratio to the one without."""
    with sink() as url:
        async with service(1, fake_step_ms=0.0, max_rows=64, traces_url=url, traces_ratio=0.0) as running:
            await load(running, images, 1)
            found = []
            for number in range(rounds):
                order = list(EVERY) if number % 2 else list(reversed(EVERY))
                row = {name: await load(running, images, EVERY[name]) for name in order}
                found.append(row)
    result: dict[str, dict[str, float]] = {}
    for name in EVERY:
        result[name] = {
            **{f"{role}_ms": round(statistics.median(each[name][role] for each in found), 3) for role in ROLES},
            **{
                f"{role}_ratio": round(statistics.median(each[name][role] / each["none"][role] for each in found), 4)
                for role in ROLES
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
