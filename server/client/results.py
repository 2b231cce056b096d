"""What the clients return: images, previews, events of a job."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One finished file and how it came to be."""

    data: bytes
    seed: int
    format: str
    metrics: dict[str, Any]
    warnings: tuple[str, ...] = ()  #: about the request that it answers

    def save(self, path: str | Path) -> Path:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.data)
        return target


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture half done."""

    data: bytes
    image_index: int
    number: int
    format: str


@dataclass(frozen=True, slots=True)
class JobEvent:
    """`type`: status, progress, partial_image, or at last the state in which the job ended."""

    id: str
    type: str
    data: dict[str, Any]
