"""Who asked for what, what they were told, and whether it came true."""

from __future__ import annotations

import io
import uuid
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
from PIL import Image

from server.engine_api import RowRequest
from server.fake_engine import FakeEngine
from server.jobs import JobRecord
from server.queue import Queue

ORDINARY = ("an apple", "a cat", "two words")
POISON = ("[raise]", "[raise-admit]", "[wrong-shape]", "[impossible]", "[oom]")


@dataclass
class Entry:
    """One submission. `job_id` is None while nobody knows whether it was accepted."""

    label: str
    body: dict[str, Any]
    job_id: str | None = None
    refused: int = 0  # status of an answer that was no 2xx
    cancel: bool = False


@dataclass
class Verdict:
    """What the books say at the end."""

    states: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)  # accepted, and not in a terminal state or without its pictures
    duplicates: list[str] = field(default_factory=list)  # a result that is not the one its request must have
    ordinary_failed: list[str] = field(default_factory=list)


class Ledger:
    """Every submission by its label, which travels in the field `user`."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def new(self, random: Random, poison_share: float) -> Entry:
        poison = random.random() < poison_share
        body: dict[str, Any] = {
            "prompt": random.choice(POISON if poison else ORDINARY), "seed": random.randrange(2**40),
            "n": random.choice((1, 1, 1, 2, 4)), "num_inference_steps": random.randrange(4, 60),
            "priority": random.choice(("high", "normal", "normal", "low")),
        }  # fmt: skip
        entry = Entry(uuid.UUID(int=random.getrandbits(128)).hex, body)
        body["user"] = entry.label
        self.entries[entry.label] = entry
        return entry

    @property
    def accepted(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.job_id]

    async def find_unknown(self, queue: Queue) -> None:
        """Jobs whose answer never reached the client are found by their label."""
        async for key in queue.redis.scan_iter(queue.keys.job_hash("*"), count=1000):
            record = await queue.get(key.rpartition(":")[2])
            entry = self.entries.get(record.input.user or "")
            if entry is not None:
                entry.job_id = entry.job_id or record.id

    async def unfinished(self, queue: Queue) -> int:
        records = [await queue.get(entry.job_id or "") for entry in self.accepted]
        return sum(not record.state.terminal for record in records)

    async def judge(self, queue: Queue, http: httpx.AsyncClient) -> Verdict:
        """Look at every accepted job, and fetch every picture twice."""
        verdict = Verdict()
        for entry in self.accepted:
            record = await queue.get(entry.job_id or "")
            verdict.states[str(record.state)] += 1
            if not record.state.terminal:
                verdict.lost.append(f"{record.id}: still {record.state}")
            if record.state == "failed" and entry.body["prompt"] in ORDINARY:
                verdict.ordinary_failed.append(f"{record.id}: {record.error}")
            if record.state == "succeeded":
                await self._check_pictures(record, http, verdict)
        return verdict

    async def _check_pictures(self, record: JobRecord, http: httpx.AsyncClient, verdict: Verdict) -> None:
        if len(record.outputs) != record.input.n:
            verdict.lost.append(f"{record.id}: {len(record.outputs)} of {record.input.n} pictures")
        for index in range(record.input.n):
            answers = [await http.get(f"/v1/jobs/{record.id}/images/{index}") for _ in range(2)]
            if any(answer.status_code != 200 for answer in answers):
                verdict.lost.append(f"{record.id}: picture {index} answers {[a.status_code for a in answers]}")
            elif answers[0].content != answers[1].content:
                verdict.duplicates.append(f"{record.id}: picture {index} changes")
            elif Image.open(io.BytesIO(answers[0].content)).tobytes() != expected_pixels(record, index):
                verdict.duplicates.append(f"{record.id}: picture {index} is another one")


def expected_pixels(record: JobRecord, index: int) -> bytes:
    """What the fake engine draws for this request: the only picture that may be seen."""
    engine = FakeEngine(1, 0)
    (row,) = engine.admit([RowRequest.of(record.input, index)])
    return engine.image(row)
