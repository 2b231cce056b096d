"""Dead letters, the jobs that failed for good: list them, replay them as new jobs, or drop them."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

from server.errors import UnknownDeadLetter
from server.jobs import JobError, JobInput
from server.queue.job_queue import JobQueue, Submission
from server.records import UNREADABLE, decode, describe, read_json

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
        return _time_of(self.entry)


@dataclass(frozen=True, slots=True)
class UnreadableLetter:
    """A dead letter that another version wrote; it can be shown and dropped, but not replayed."""

    entry: str
    fields: Mapping[str, str]
    reason: str

    @property
    def job_id(self) -> str:
        """The id to name it by: the entry's own, if the job's is missing."""
        return self.fields.get("id") or self.entry

    @property
    def died_at(self) -> float:
        return _time_of(self.entry)


def _time_of(entry: str) -> float:
    """Unix time of a stream's entry."""
    return int(entry.split("-")[0]) / 1000


def _letter(entry: str, fields: Mapping[str, str]) -> DeadLetter:
    return DeadLetter(
        entry=entry,
        job_id=fields["id"],
        kind=fields["kind"],
        attempt=int(fields["attempt"]),
        error=decode(JobError, read_json(fields["error"])),
        input=JobInput.from_json(fields["input"]),
    )


class DeadLetters:
    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._redis, self._stream = queue.redis, queue.keys.dead_letters_stream

    async def entries(self) -> AsyncIterator[DeadLetter | UnreadableLetter]:
        """Iterate over all dead letters, oldest first, page by page."""
        start = "-"
        while page := await self._redis.xrange(self._stream, min=start, count=PAGE):
            for entry, fields in page:
                try:
                    yield _letter(entry, fields)
                except UNREADABLE as error:
                    yield UnreadableLetter(entry, fields, describe(error))
            start = f"({page[-1][0]}"

    async def all(self) -> AsyncIterator[DeadLetter]:
        """Iterate over the dead letters that this version can read."""
        async for letter in self.entries():
            if isinstance(letter, DeadLetter):
                yield letter

    async def find(self, job_id: str) -> DeadLetter | UnreadableLetter:
        """Return the dead letter of a job, or the unreadable one that `entries` shows under this id.

        Raises:
            UnknownDeadLetter: there is none.
        """
        async for letter in self.entries():
            if letter.job_id == job_id:
                return letter
        raise UnknownDeadLetter(f"No dead letter has the job id {job_id!r}. `fluid dlq list` shows them.")

    async def replay(self, letter: DeadLetter) -> str:
        """Enqueue a new job with the same input, drop the dead letter, return the job's id. The old job stays failed.

        The id is derived from the letter's, and accepting an id twice changes nothing: a replay that is interrupted
        before the letter is dropped, and repeated, still generates once.
        """
        job_id = f"replay_{letter.job_id}_{letter.entry.replace('-', '')}"
        # A line of a batch becomes a job of its own: the batch has counted its end already.
        kind = "job" if letter.input.batch else letter.kind
        await self._queue.enqueue(Submission(job_id, replace(letter.input, batch=""), kind))
        await self.drop(letter)
        return job_id

    async def drop(self, letter: DeadLetter | UnreadableLetter) -> None:
        await self._redis.xdel(self._stream, letter.entry)
