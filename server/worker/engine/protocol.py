"""What the worker needs from anything that draws; no torch here, so that gateway and tests can import it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.images.compositing import Known
from server.jobs import JobInput
from server.sampling import Sampling


@dataclass(frozen=True, slots=True)
class RowRequest:
    """One image to decode. The same request and seed give the same picture, whatever shares its batch."""

    prompt: str
    seed: int
    sampling: Sampling
    known: Known | None = None  #: what is there already; the AR steps are for the rest

    @classmethod
    def of(cls, job: JobInput, index: int, known: Known | None = None) -> "RowRequest":
        return cls(job.prompt, job.seed_of(index), job.sampling, known)


class Engine(Protocol):
    """Rows of different requests, at different steps, sharing every forward pass. Called from one thread."""

    max_rows: int
    image_size: tuple[int, int]  # width, height
    kernels: str  # what runs the innermost loop: "torch", "triton", …
    device: str  # what it runs on, for people: "cpu, bfloat16"

    def admit(self, requests: Sequence[RowRequest]) -> list[int]:
        """Give each request a free row; all of them or, on an exception, none.

        Raises:
            ValueError: a request itself cannot be done. Its job fails at once with this message, which its caller
                reads; any other exception is the engine's fault, and the job is tried again.
        """
        ...

    def step(self) -> list[int]:
        """One autoregressive step for every row; returns the rows that just finished."""
        ...

    def progress(self, row: int) -> tuple[int, int]:
        """(steps done, steps in all)"""
        ...

    def image(self, row: int) -> bytes:
        """RGB bytes of a row as far as it is decoded, height * width * 3."""
        ...

    def snapshot(self, row: int) -> bytes:
        """A row half done, a few KiB: enough to go on with it anywhere that has the same checkpoint."""
        ...

    def restore(self, request: RowRequest, state: bytes) -> int:
        """Give the request a row that goes on where the snapshot was taken, and ends in the same picture.

        Raises:
            ValueError: the snapshot is not one of this checkpoint and request. Nothing was admitted.
        """
        ...

    def release(self, row: int) -> None:
        """Free the row, finished or not."""
        ...

    def prompt_tokens(self, prompt: str) -> int:
        """Of one that was admitted: how many tokens the model reads of it."""
        ...

    def info(self) -> Mapping[str, object]:
        """The fields of jobs.ModelInfo."""
        ...
