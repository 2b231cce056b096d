"""Clients: they queue jobs, wait for pictures, hang up in the middle, and cancel at awkward moments."""

from __future__ import annotations

import asyncio
from random import Random

import httpx

from benchmarks.chaos.ledger import Entry, Ledger


class Crowd:
    """Requests at a steady rate, each a task of its own, whatever becomes of the earlier ones."""

    def __init__(self, http: httpx.AsyncClient, ledger: Ledger, random: Random, per_second: float):
        self.http, self.ledger, self.random = http, ledger, random
        self.pause = 1 / per_second
        self.tasks: set[asyncio.Task[None]] = set()
        self.unavailable = 0

    async def send_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            entry = self.ledger.new(self.random, 0.06)
            kind = self.random.choices((self._job, self._picture, self._hang_up, self._cancel), (60, 15, 10, 15))[0]
            task = asyncio.create_task(kind(entry))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            await asyncio.sleep(self.pause)
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=60)

    async def _job(self, entry: Entry) -> None:
        await self._post("/v1/jobs", entry)

    async def _picture(self, entry: Entry) -> None:
        await self._post("/v1/images/generations", entry)

    async def _hang_up(self, entry: Entry) -> None:
        """The service cancels what nobody waits for any more; either end is right."""
        with_deadline = self._post("/v1/images/generations", entry)
        try:
            await asyncio.wait_for(with_deadline, self.random.uniform(0.0, 0.4))
        except TimeoutError:
            entry.cancel = True

    async def _cancel(self, entry: Entry) -> None:
        await self._post("/v1/jobs", entry)
        if entry.job_id is None:
            return
        entry.cancel = True
        await asyncio.sleep(self.random.uniform(0.0, 0.5))
        try:
            await self.http.post(f"/v1/jobs/{entry.job_id}/cancel")
        except httpx.TransportError:
            self.unavailable += 1

    async def _post(self, path: str, entry: Entry) -> None:
        try:
            answer = await self.http.post(path, json=entry.body)
        except httpx.TransportError:
            self.unavailable += 1  # accepted or not: the ledger finds out by the label
            return
        if answer.is_success:
            entry.job_id = answer.json().get("id") or answer.json().get("job_id")
        else:
            # A 503 after a timeout may have been accepted all the same, and a failed picture is a job that ended.
            entry.refused = answer.status_code
