"""What a server loses when the process that holds its engine is killed under load.

Callers send requests in a closed loop. After WARM_S the process gets SIGKILL; whatever restarts it is the server's own
supervisor, or for a server without one this benchmark, at once. A caller whose request failed tries the next one. A
request without an answer after HANG_S hangs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass

import httpx

from benchmarks.peers.servers.work import PATH
from benchmarks.peers.sides import Side

CALLERS = 32
WARM_S = 2.0
HANG_S = 20.0
PAUSE_S = 0.05  # after a failure
PNG = b"\x89PNG"


@dataclass(frozen=True)
class Request:
    """One request and its end; times are on the clock of time.monotonic."""

    sent: float
    ended: float
    end: str  # "image", "failed" or "hung"


def kill_under_load(side: Side, steps: int, seconds: float) -> dict[str, float | None]:
    """Kill the engine's process, keep the load up for `seconds`, and count how requests ended."""
    requests, killed = asyncio.run(_run(side, steps, seconds))
    return count(requests, killed)


def count(requests: list[Request], killed: float) -> dict[str, float | None]:
    """Count requests by their end: those in flight at the kill, and those sent after it."""
    flying = [request for request in requests if request.sent <= killed <= request.ended]
    later = [request for request in requests if request.sent > killed]
    served = [request for request in later if request.end == "image"]
    waits = [request.ended - request.sent for request in [*flying, *served] if request.end == "image"]
    return {
        "in_flight": len(flying),
        "lost": sum(request.end != "image" for request in flying),
        "failed_after": sum(request.end == "failed" for request in later),
        "hung": sum(request.end == "hung" for request in [*flying, *later]),
        "serves_again_s": min(request.ended for request in served) - killed if served else None,
        "longest_wait_s": max(waits, default=None),
    }


async def _run(side: Side, steps: int, seconds: float) -> tuple[list[Request], float]:
    requests: list[Request] = []
    stop = asyncio.Event()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=HANG_S, limits=limits) as client:
        url = f"http://127.0.0.1:{side.port}{PATH}"
        callers = [asyncio.create_task(_call(client, url, i, steps, stop, requests)) for i in range(CALLERS)]
        await asyncio.sleep(WARM_S)
        os.kill(side.engine_pid(), signal.SIGKILL)
        killed = time.monotonic()
        await asyncio.sleep(seconds)
        stop.set()
        await asyncio.gather(*callers)
    return requests, killed


async def _call(
    client: httpx.AsyncClient, url: str, caller: int, steps: int, stop: asyncio.Event, requests: list[Request]
) -> None:
    seed = caller
    while not stop.is_set():
        seed += CALLERS
        body = {"prompt": "a red apple", "seed": seed, "num_inference_steps": steps}
        sent = time.monotonic()
        try:
            # One limit for the whole request: httpx's own are for each read.
            async with asyncio.timeout(HANG_S):
                response = await client.post(url, json=body, headers={"Accept": "image/png"})
            end = "image" if response.status_code == 200 and response.content.startswith(PNG) else "failed"
        except (TimeoutError, httpx.TimeoutException):
            end = "hung"
        except httpx.HTTPError:
            end = "failed"
        requests.append(Request(sent, time.monotonic(), end))
        if end != "image":
            await asyncio.sleep(PAUSE_S)
