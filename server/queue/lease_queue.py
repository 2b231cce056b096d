"""The workers' side of the queue: take a job under a lease, renew it, save progress, finish once or give it back.

A lease is an entry with an end, which its worker moves on while it lives; its fencing token rises at every start, so
a worker that fell silent and came back is refused at the finish.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from server.jobs import JobError, JobInput, JobMetrics, JobState, Lease, Output, Resume
from server.queue.redis_client import Client
from server.queue.scripts import QueueConnection
from server.settings import Settings

RESULT_EXTRA_S = 3600  # pictures outlive the job's record, so a visible record never points at nothing


@dataclass(frozen=True, slots=True)
class LeaseRenewal:
    """What a worker reports of one job; `running` is true once a row was admitted."""

    lease: Lease
    running: bool
    step: int


def shared_attempts(max_attempts: int) -> int:
    """Crashes cost every job in the batch an attempt, so the second half of a job's attempts run alone."""
    return (max_attempts + 1) // 2


class LeaseQueue(QueueConnection):
    """What a worker does with jobs. Every write under a lease is fenced by its token."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        super().__init__(redis, settings)
        self.lease_ms = int(settings.lease_s * 1000)
        self.max_attempts = settings.max_attempts
        self.ageing_s = settings.ageing_s

    async def take(
        self, worker: str, model: str, *, block_s: float | None = None, patience_s: float = 0.0
    ) -> Lease | None:
        """The next waiting job of the model, or None after `block_s`.

        With `patience_s` only a job that has waited that long: an idle worker would have had it by then.
        """
        found = await self._take(worker, model, patience_s)
        if found is None and block_s is not None and await self.redis.blpop(self.keys.bell_list(model), block_s):
            found = await self._take(worker, model, patience_s)
        return found

    async def _take(self, worker: str, model: str, patience_s: float) -> Lease | None:
        limits = [self.lease_ms, self.max_attempts, self.ttl_s]
        answer = await self.run("take", [model, worker, *limits, secrets.token_hex(8), self.ageing_s, patience_s])
        return self._lease(answer) if answer else None

    async def reclaim(self, worker: str, model: str, held: Iterable[str], *, count: int) -> list[Lease]:
        """Jobs whose worker fell silent. `held` are the ids that we still work on."""
        limits = [self.lease_ms, self.max_attempts, self.ttl_s]
        answers = await self.run("reclaim", [model, worker, *limits, count, *held])
        return [self._lease(answer) for answer in answers]

    def _lease(self, answer: Sequence[Any]) -> Lease:
        job_id, token, attempt, job, created_at, started_at, error, resumable = answer
        last_tries = int(attempt) > shared_attempts(self.max_attempts)
        return Lease(
            job_id=job_id,
            token=int(token),
            attempt=int(attempt),
            input=JobInput.from_json(job),
            created_at=float(created_at),
            started_at=float(started_at),
            suspect=bool(error) or last_tries,
            resumable=bool(resumable),
        )

    async def pulse(self, pulses: Sequence[LeaseRenewal], *, renew: bool) -> list[str]:
        """Renew leases and write progress; answers "ok", "cancel" or "lost" for each."""
        if not pulses:
            return []
        args: list[Any] = [self.lease_ms if renew else 0]
        for p in pulses:
            args += [p.lease.job_id, p.lease.token, int(p.running), p.step]
        return cast("list[str]", await self.run("pulse", args))

    async def save(
        self, lease: Lease, checkpoint: str, *, snapshots: Mapping[int, bytes], outputs: Sequence[Output] = ()
    ) -> None:
        """Keep rows half done, and finished images, for whoever goes on with the job after us."""
        pairs: list[str | bytes] = ["checkpoint", checkpoint]
        for index, state in snapshots.items():
            pairs += [f"snapshot:{index}", state]
        for output in outputs:
            pairs += [f"output:{output.index}", json.dumps(asdict(output))]
        await self.run("save", [lease.job_id, lease.token, self.ttl_s, *pairs])

    async def resume(self, lease: Lease, checkpoint: str) -> Resume:
        """What an earlier try left. Nothing if other weights drew it: the picture would be of two minds."""
        raw = await self.redis.execute_command("HGETALL", self.keys.resume_hash(lease.job_id), NEVER_DECODE=True)
        fields = dict(zip(raw[::2], raw[1::2], strict=True)) if isinstance(raw, list) else raw
        if fields.get(b"checkpoint") != checkpoint.encode():
            return Resume()
        found = Resume.from_fields(fields)
        alive = {index: output for index, output in found.outputs.items() if await self._lives(lease, output)}
        return Resume(alive, found.snapshots)

    async def _lives(self, lease: Lease, output: Output) -> bool:
        """Files of earlier tries have their own time to live; it starts again here."""
        key = self.keys.result_bytes(lease.job_id, output.token, output.index)
        return bool(await self.redis.expire(key, self._result_ttl_s(lease)))

    def _result_ttl_s(self, lease: Lease) -> int:
        return (lease.input.result_ttl_s or self.ttl_s) + RESULT_EXTRA_S

    async def store_result(self, lease: Lease, index: int, data: bytes) -> None:
        """Before the finish, under a key that only this lease writes. A job's last goes with its finish."""
        key = self.keys.result_bytes(lease.job_id, lease.token, index)
        await self.redis.set(key, data, ex=self._result_ttl_s(lease))

    async def finish(
        self,
        lease: Lease,
        state: JobState,
        *,
        outputs: Sequence[Output] = (),
        error: JobError | None = None,
        metrics: JobMetrics | None = None,
        files: Mapping[int, bytes] | None = None,
    ) -> bool:
        """Write the terminal state, once, with the files that are not stored yet.

        False: the lease was lost and nothing was written.
        """
        answer = await self.run(
            "finish",
            [
                lease.job_id,
                lease.token,
                state.value,
                json.dumps([asdict(o) for o in outputs]),
                json.dumps(asdict(error)) if error else "",
                json.dumps(asdict(metrics)) if metrics else "",
                self.ttl_s,
                lease.input.work,
                self._result_ttl_s(lease),
                *(part for pair in (files or {}).items() for part in pair),
            ],
        )
        if answer not in (JobState.SUCCEEDED, "fenced"):
            await self._forget_results(lease)
        return bool(answer != "fenced")

    async def give_back(self, lease: Lease, *, error: JobError | None = None, anew: bool = False) -> str:
        """Return a job. Without an error the try is not counted; with one it fails at the last try.

        `anew`: what was kept of it led to the error, and the next try shall not go on from there.
        """
        failure = json.dumps(asdict(error)) if error else ""
        limits = [self.max_attempts, self.ttl_s]
        answer = await self.run("give_back", [lease.job_id, lease.token, failure, *limits, int(anew)])
        if answer in (JobState.CANCELED, JobState.FAILED) or (anew and answer != "fenced"):
            await self._forget_results(lease)
        return str(answer)

    async def _forget_results(self, lease: Lease) -> None:
        """Those of this try. Others' may be part of a result; they expire by themselves."""
        keys = [self.keys.result_bytes(lease.job_id, lease.token, i) for i in range(lease.input.n)]
        await self.redis.delete(*keys)

    async def store_preview(self, lease: Lease, index: int, number: int, data: bytes) -> None:
        """Store preview `number` of an image and announce it; does nothing if the lease was lost."""
        await self.run("preview", [lease.job_id, lease.token, index, number, data, self.ttl_s])
