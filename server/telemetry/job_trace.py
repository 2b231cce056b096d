"""What happened to a traced job in a worker: collected while it is held, and turned into spans when it leaves."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.jobs import JobInput, Lease
from server.telemetry.trace_context import forget_job, parse_traceparent, remember_job
from server.telemetry.tracing import Attributes, Tracing

STEP_EVENTS = 16  # most events of steps on the span of an image
PROVIDER = "fluid-serve"


def request_attributes(job_id: str, job: JobInput) -> Attributes:
    """What GenAI's semantic conventions name of a request for images, and ours. The prompt is not among it."""
    found: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": job.model,
        "gen_ai.request.seed": job.seed,
        "gen_ai.response.id": job_id,
        "fluid.job.steps": job.sampling.num_inference_steps,
        "fluid.job.priority": job.priority,
    }
    return found | ({"gen_ai.request.choice.count": job.n} if job.n > 1 else {})


@dataclass(slots=True)
class _Piece:
    name: str
    began: float  #: on the monotonic clock
    ended: float = 0.0
    attributes: dict[str, str | int | float | bool] = field(default_factory=dict)
    steps: list[tuple[float, int]] = field(default_factory=list)


class JobTrace:
    """The pieces of one attempt at a job; does nothing for a job that is not traced."""

    __slots__ = ("_decoding", "_lease", "_parent", "_pieces", "_taken", "sampled")

    def __init__(self, lease: Lease) -> None:
        self._parent = parse_traceparent(lease.trace) if lease.trace else None
        self.sampled = self._parent is not None and self._parent.sampled
        if not self.sampled:
            return
        assert self._parent is not None
        self._lease, self._taken = lease, time.monotonic()
        self._pieces: list[_Piece] = []
        self._decoding: dict[int, _Piece] = {}
        remember_job(lease.job_id, self._parent.trace_id)

    @property
    def trace_id(self) -> str:
        """Id of the trace, or "" if the job is not traced."""
        return self._parent.trace_id if self.sampled and self._parent else ""

    def add(self, name: str, began: float, **attributes: str | int) -> None:
        """Add something that began at this time of the monotonic clock and ends now."""
        if self.sampled:
            self._pieces.append(_Piece(name, began, time.monotonic(), dict(attributes)))

    @contextmanager
    def piece(self, name: str, **attributes: str | int) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, began, **attributes)

    def begin_decoding(self, index: int, done: int) -> None:
        """An image got a row, with this many steps done."""
        if self.sampled:
            self._decoding[index] = _Piece(
                "decode", time.monotonic(), 0.0, {"fluid.image": index, "fluid.first_step": done}
            )

    def step(self, index: int, done: int) -> None:
        """An image has this many steps done; a few of them become events."""
        piece = self._decoding.get(index)
        steps = self._lease.input.sampling.num_inference_steps
        last = piece.steps[-1][1] if piece and piece.steps else 0
        if piece is not None and (done - last) * STEP_EVENTS >= steps and done > last:
            piece.steps.append((time.monotonic(), done))

    def end_decoding(self, index: int, rows: int) -> None:
        """An image left its row; `rows` is the most that shared a step with it."""
        if self.sampled and (piece := self._decoding.pop(index, None)) is not None:
            piece.ended = time.monotonic()
            piece.attributes["fluid.batch_peak"] = rows
            self._pieces.append(piece)

    def export(
        self, tracing: Tracing, outcome: str, *, error: str = "", prompt_tokens: int = 0, kernels: str = ""
    ) -> None:
        """Turn everything into spans: the wait, the attempt, and in it what was collected."""
        if not self.sampled:
            return
        forget_job(self._lease.job_id)
        if not tracing.on:
            return
        lease, now = self._lease, time.time()
        offset = now - time.monotonic()
        for piece in self._decoding.values():
            piece.ended = now - offset
        pieces = [*self._pieces, *self._decoding.values()]
        taken = self._taken + offset
        if lease.attempt == 1:
            wait = tracing.span(
                "queue", self._parent, began=taken - lease.queue_s, attributes={"gen_ai.response.id": lease.job_id}
            )
            wait.end(at=taken)
        attempt = tracing.span(
            f"generate_content {lease.input.model}",
            self._parent,
            kind="CONSUMER",
            began=taken,
            attributes={
                **request_attributes(lease.job_id, lease.input),
                "gen_ai.response.model": lease.input.model,
                "gen_ai.usage.input_tokens": prompt_tokens,
                "fluid.job.attempt": lease.attempt,
                "fluid.job.outcome": outcome,
                "fluid.kernels": kernels,
            },
        )
        for piece in pieces:
            steps = [(at + offset, "step", {"fluid.step": step}) for at, step in piece.steps]
            attempt.child(piece.name, piece.began + offset, piece.ended + offset, piece.attributes, steps)
        attempt.end(error=error, at=now)
