"""Dead letters, the jobs that failed for good: list them, replay them as new jobs, or drop them."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from server.errors import UnknownDeadLetter
from server.jobs import JobError, JobInput
from server.queue.job_queue import JobQueue, Submission
from server.records import decode, readable

PAGE = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A copy of a failed job that outlives its record; the stream keeps the newest 10,000."""

    entry: str
    job_id: str
    kind: str
    attempt: int
    error: JobError
    input: JobInput

    @property
    def died_at(self) -> float:
        return int(self.entry.split("-")[0]) / 1000


def _letter(entry: str, fields: Mapping[str, str]) -> DeadLetter:
    return DeadLetter(
        entry=entry,
        job_id=fields["id"],
        kind=fields["kind"],
        attempt=int(fields["attempt"]),
        error=decode(JobError, json.loads(fields["error"])),
        input=JobInput.from_json(fields["input"]),
    )


class DeadLetters:
    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._redis, self._stream = queue.redis, queue.keys.dead_letters_stream

    async def all(self) -> AsyncIterator[DeadLetter]:
        """Iterate over all dead letters, oldest first, page by page."""
        start = "-"
        while page := await self._redis.xrange(self._stream, min=start, count=PAGE):
            for letter in readable("a dead letter", page, lambda entry: _letter(*entry)):
                yield letter
            start = f"({page[-1][0]}"

    async def find(self, job_id: str) -> DeadLetter:
        async for letter in self.all():
            if letter.job_id == job_id:
                return letter
        raise UnknownDeadLetter(f"No dead letter has the job id {job_id!r}. `fluid dlq list` shows them.")

    async def replay(self, letter: DeadLetter) -> str:
        """Enqueue a new job with the same input, drop the dead letter, return the job's id. The old job stays failed.

        The id is derived from the letter's, and accepting an id twice changes nothing: a replay that is interrupted
        before the letter is dropped, and repeated, still generates once.
        """
        job_id = f"replay_{letter.job_id}_{letter.entry.replace('-', '')}"
        await self._queue.enqueue(Submission(job_id, letter.input, letter.kind))
        await self.drop(letter)
        return job_id

    async def drop(self, letter: DeadLetter) -> None:
        await self._redis.xdel(self._stream, letter.entry)
