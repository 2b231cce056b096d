"""Clients: they queue jobs and look after them, wait for pictures, hang up in the middle, cancel at awkward moments."""

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
DEADLY = ("[kill]", "[hang]")  # each costs several workers
ORDINARY = ("an apple", "a cat", "two words", "日本の城")
WAIT_S = 60.0  # longest patience of a client
LOOK_S = 0.3


class Crowd:
    """Requests at random moments, each a task of its own, whatever becomes of the earlier ones (open loop)."""

    def __init__(self, cast: Cast, ledger: Ledger, random: Random, per_second: float) -> None:
        self._cast, self._ledger, self._random, self._per_second = cast, ledger, random, per_second
        self._http = httpx.AsyncClient(timeout=WAIT_S, limits=httpx.Limits(max_connections=None))
        self.errors = 0  # answers that never came, and 5xx

    async def until(self, stop: asyncio.Event) -> None:
        kinds: dict[Callable[[Submission], Awaitable[None]], int] = {
            self._job: 45, self._picture: 20, self._hang_up: 12, self._vanish: 8, self._cancel: 15,
        }  # fmt: skip
        under_way: set[asyncio.Task[None]] = set()
        async with self._http:
            while not stop.is_set():
                await asyncio.sleep(self._random.expovariate(self._per_second))
                kind = self._random.choices(list(kinds), list(kinds.values()))[0]
                task = asyncio.ensure_future(kind(self._ledger.add(self._submission())))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.gather(*under_way)

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
            entry.ends = {"succeeded"} if prompt == "[oom]" else {"failed"}  # out of memory in company only
        if random.random() < 0.05:
            body["deadline_ms"] = random.randrange(100, 5000)
            entry.ends |= {"aborted", "canceled"}
        return entry

    async def _job(self, entry: Submission) -> None:
        """Submits, looks now and then, and fetches the pictures."""
        job_id = await self._post("/v1/jobs", entry)
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while job_id is not None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(LOOK_S)
            answer = await self._ask("GET", f"/v1/jobs/{job_id}")
            if answer is None:
                continue
            if answer.status_code == 404:
                entry.gone.add(job_id)
                return
            entry.saw(job_id, answer.json()["status"])
            if JobState(answer.json()["status"]).terminal:
                await self._fetch(entry, job_id, len(answer.json()["output"]))
                return

    async def _fetch(self, entry: Submission, job_id: str, count: int) -> None:
        for index in range(count):
            answer = await self._ask("GET", f"/v1/jobs/{job_id}/images/{index}")
            if answer is not None and answer.is_success:
                entry.saw_picture(index, answer.content)
            elif answer is not None:
                entry.missing.add(index)

    async def _picture(self, entry: Submission) -> None:
        """Waits for the picture itself. Who is left waiting too long hangs up, and then the service may cancel."""
        answer = await self._ask("POST", "/v1/images/generations", entry)
        if answer is None:
            entry.ends.add("canceled")
        elif answer.is_success:
            entry.told.add(answer.json()["job_id"])
            entry.saw(answer.json()["job_id"], "succeeded")
            for index, image in enumerate(answer.json()["data"]):
                entry.saw_picture(index, base64.b64decode(image["b64_json"]))

    async def _hang_up(self, entry: Submission) -> None:
        """The service cancels what nobody waits for any more; either end is right."""
        entry.ends.add("canceled")
        await self._at_most(self._picture(entry), self._random.uniform(0.0, 0.6))

    async def _vanish(self, entry: Submission) -> None:
        """Submits and is gone before the answer. The job, if there is one, must be drawn all the same."""
        await self._at_most(self._post("/v1/jobs", entry), self._random.uniform(0.0, 0.015))

    async def _cancel(self, entry: Submission) -> None:
        """Two cancels at once, at a moment when the job may wait, run or end."""
        entry.ends.add("canceled")
        job_id = await self._post("/v1/jobs", entry)
        if job_id is not None:
            await asyncio.sleep(self._random.uniform(0.0, 1.2))
            cancels = (self._ask("POST", f"/v1/jobs/{job_id}/cancel") for _ in range(2))
            for answer in await asyncio.gather(*cancels):
                # Which of two simultaneous answers is the older one, nobody can tell; ends must agree all the same.
                if answer is not None and JobState(answer.json()["status"]).terminal:
                    entry.saw(job_id, answer.json()["status"])

    async def _post(self, path: str, entry: Submission) -> str | None:
        """The job's id if the answer was a 2xx. Anything else leaves open whether there is a job."""
        answer = await self._ask("POST", path, entry)
        if answer is None or not answer.is_success:
            return None
        job_id: str = answer.json()["id"]
        entry.told.add(job_id)
        return job_id

    async def _ask(self, method: str, path: str, entry: Submission | None = None) -> httpx.Response | None:
        """None if the connection died or the service was away."""
        try:
            answer = await self._http.request(method, self._cast.address() + path, json=entry and entry.body)
        except httpx.TransportError:
            self.errors += 1
            return None
        if answer.status_code >= 500:
            self.errors += 1
        return None if answer.status_code == 503 else answer

    async def _at_most(self, client: Awaitable[object], seconds: float) -> None:
        """A client whose patience, or machine, ends: its connection is closed."""
        try:
            await asyncio.wait_for(client, seconds)
        except TimeoutError:
            return
