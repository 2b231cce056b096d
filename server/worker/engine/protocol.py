"""The interface between worker and engine; no torch here, so that gateway and tests can import it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.images.compositing import KnownPixels
from server.jobs import JobInput
from server.sampling import Sampling


@dataclass(frozen=True, slots=True)
class RowRequest:
    """One image to decode. The same request and seed give the same image, whatever shares its batch."""

    prompt: str
    seed: int
    sampling: Sampling
    known: KnownPixels | None = None  #: the part that an edit or a variation keeps; the AR steps are for the rest
    negative_prompt: str = ""  #: what guidance steers away from
    transparent: bool = field(default=False, repr=False)  #: an image with alpha; of models that have it

    @classmethod
    def of(cls, job: JobInput, index: int, known: KnownPixels | None = None) -> "RowRequest":
        """The request for image `index` of a job."""
        return cls(job.prompt, job.seed_of(index), job.sampling, known, job.negative_prompt, job.channels == 4)


class Engine(Protocol):
    """Decodes rows of different requests, at different steps, in shared forward passes. Called from one thread."""

    max_rows: int
    image_size: tuple[int, int]  # width, height
    kernels: str  # implementation of the innermost loop: "torch", "triton", …
    device: str  # for people: "cpu, bfloat16"

    def warm_up(self, report: Callable[[int, int], None]) -> None:
        """Compile and capture what steps will need, before the first image; report (shapes done, shapes in total)."""
        ...

    def admit(self, requests: Sequence[RowRequest]) -> list[int]:
        """Give each request a free row; all of them or, on an exception, none.

        Raises:
            ValueError: a request itself is impossible. Its job fails at once with this message, which its caller reads.
                Any other exception is the engine's fault, and the job gets another attempt.
        """
        ...

    def step(self) -> list[int]:
        """Run one autoregressive step for every row; returns the rows that just finished."""
        ...

    def progress(self, row: int) -> tuple[int, int]:
        """Return (steps done, steps in total)."""
        ...

    def image(self, row: int) -> bytes:
        """Bytes of a row as far as it is decoded: height * width * 3 RGB, or * 4 RGBA of a transparent request."""
        ...

    def snapshot(self, row: int) -> bytes:
        """The state of an unfinished row, a few KiB: enough to resume it wherever the same checkpoint is loaded."""
        ...

    def restore(self, request: RowRequest, state: bytes) -> int:
        """Give the request a row that resumes where the snapshot was taken, and ends in the same image.

        Raises:
            ValueError: the snapshot belongs to another checkpoint or request. Nothing was admitted.
        """
        ...

    def release(self, row: int) -> None:
        """Free the row, finished or not."""
        ...

    def prompt_tokens(self, prompt: str) -> int:
        """Return how many tokens the model reads from a prompt that was admitted."""
        ...

    def info(self) -> Mapping[str, object]:
        """Return the fields of model_info.ModelInfo."""
        ...
