"""Clients under test: poll jobs, wait for images, hang up half-way, disconnect at once, cancel at awkward moments."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Awaitable, Callable
from random import Random

import httpx

from benchmarks.chaos.cast import Cast
from benchmarks.chaos.ledger import Ledger, Submission
from server.jobs import JobState

POISON = ("[raise]", "[raise-admit]", "[wrong-shape]", "[impossible]", "[oom]")
DEADLY = ("[kill]", "[hang]")  # each crashes several workers
ORDINARY = ("an apple", "a cat", "two words", "日本の城")
WAIT_S = 60.0  # longest time that a client waits
POLL_S = 0.3


class Crowd:
    """Open-loop load: requests at random moments, each in its own task, regardless of earlier ones."""

    def __init__(self, cast: Cast, ledger: Ledger, random: Random, per_second: float) -> None:
        self._cast, self._ledger, self._random, self._per_second = cast, ledger, random, per_second
        self._http = httpx.AsyncClient(trust_env=False, timeout=WAIT_S, limits=httpx.Limits(max_connections=None))
        self.errors = 0  # failed connections and 5xx
        self.not_replicated = 0  # those of them that are 503 not_replicated
        self.bugs: list[str] = []  # 5xx that no fault explains

    async def run(self, stop: asyncio.Event) -> None:
        """Send requests until `stop` is set, then wait for those in flight."""
        kinds: dict[Callable[[Submission], Awaitable[None]], int] = {
            self._poll_job: 45, self._wait_for_image: 20, self._hang_up: 12, self._disconnect: 8, self._cancel: 15,
        }  # fmt: skip
        in_flight: set[asyncio.Task[None]] = set()
        async with self._http:
            while not stop.is_set():
                await asyncio.sleep(self._random.expovariate(self._per_second))
                kind = self._random.choices(list(kinds), list(kinds.values()))[0]
                task = asyncio.ensure_future(kind(self._ledger.add(self._submission())))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
            await asyncio.gather(*in_flight)

    def _submission(self) -> Submission:
        random = self._random
        prompts = random.choices((ORDINARY, POISON, DEADLY), (94.4, 5.0, 0.6))[0]
        prompt = random.choice(prompts)
        body = {
            "prompt": prompt, "seed": random.randrange(2**40), "n": random.choice((1, 1, 1, 2, 4)),
            "num_inference_steps": random.randrange(4, 200), "priority": random.choice(("high", "normal", "low")),
        }  # fmt: skip
        entry = Submission(uuid.UUID(int=random.getrandbits(128)).hex, body)
        if prompts is not ORDINARY:
            entry.allowed = {"succeeded"} if prompt == "[oom]" else {"failed"}  # [oom] fails only among other rows
        if random.random() < 0.05:
            body["deadline_ms"] = random.randrange(100, 5000)
            entry.allowed |= {"aborted", "canceled"}
        return entry

    async def _poll_job(self, entry: Submission) -> None:
        """Submit a job, poll it, and fetch its images."""
        job_id = await self._post("/v1/jobs", entry)
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while job_id is not None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(POLL_S)
            response = await self._request("GET", f"/v1/jobs/{job_id}")
            if response is None:
                continue
            if response.status_code == 404:
                entry.not_found.add(job_id)
                return
            entry.observe_state(job_id, response.json()["status"])
            if JobState(response.json()["status"]).terminal:
                await self._fetch(entry, job_id, len(response.json()["output"]))
                return

    async def _fetch(self, entry: Submission, job_id: str, count: int) -> None:
        for index in range(count):
            response = await self._request("GET", f"/v1/jobs/{job_id}/images/{index}")
            if response is not None and response.is_success:
                entry.observe_image(index, response.content)
            elif response is not None:
                entry.observe_missing(index)

    async def _wait_for_image(self, entry: Submission) -> None:
        """Wait for the image itself. A client that times out hangs up, and then the service may cancel the job."""
        response = await self._request("POST", "/v1/images/generations", entry)
        if response is None:
            entry.allowed.add("canceled")
        elif response.is_success:
            entry.observe_acceptance(response.json()["job_id"])
            entry.observe_state(response.json()["job_id"], "succeeded")
            for index, image in enumerate(response.json()["data"]):
                entry.observe_image(index, base64.b64decode(image["b64_json"]))

    async def _hang_up(self, entry: Submission) -> None:
        """Hang up while waiting: the service cancels jobs without a waiter, unless this one has already succeeded."""
        entry.allowed.add("canceled")
        await self._with_timeout(self._wait_for_image(entry), self._random.uniform(0.0, 0.6))

    async def _disconnect(self, entry: Submission) -> None:
        """Submit a job and disconnect before the response. If the job was accepted, it must still be generated."""
        await self._with_timeout(self._post("/v1/jobs", entry), self._random.uniform(0.0, 0.015))

    async def _cancel(self, entry: Submission) -> None:
        """Send two cancels at once, while the job may be waiting, running or ending."""
        entry.allowed.add("canceled")
        job_id = await self._post("/v1/jobs", entry)
        if job_id is not None:
            await asyncio.sleep(self._random.uniform(0.0, 1.2))
            cancels = (self._request("POST", f"/v1/jobs/{job_id}/cancel") for _ in range(2))
            for response in await asyncio.gather(*cancels):
                # The order of two simultaneous responses is unknown, but their terminal states must agree.
                if response is not None and response.is_success and JobState(response.json()["status"]).terminal:
                    entry.observe_state(job_id, response.json()["status"])

    async def _post(self, path: str, entry: Submission) -> str | None:
        """Submit; return the job id if the response was a 2xx. After anything else the job may still exist."""
        response = await self._request("POST", path, entry)
        if response is None or not response.is_success:
            return None
        job_id: str = response.json()["id"]
        entry.observe_acceptance(job_id)
        return job_id

    async def _request(self, method: str, path: str, entry: Submission | None = None) -> httpx.Response | None:
        """Send one request; return None if the connection failed or the service was unavailable."""
        try:
            response = await self._http.request(method, self._cast.address() + path, json=entry and entry.body)
        except httpx.TransportError:
            self.errors += 1
            return None
        if response.status_code >= 500:
            self.errors += 1
        if entry is not None and "not_replicated" in response.text:
            self.not_replicated += 1
            entry.allowed.add("canceled")  # by the gateway
        if response.status_code >= 500 and "internal_error" in response.text:
            self.bugs.append(f"{method} {path}: {response.status_code} {response.text[:200]}")
        return None if response.status_code >= 500 else response

    async def _with_timeout(self, client: Awaitable[object], seconds: float) -> None:
        """Run a client that closes its connection after `seconds`."""
        try:
            await asyncio.wait_for(client, seconds)
        except TimeoutError:
            return
