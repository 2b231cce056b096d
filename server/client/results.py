"""Results of the clients: images, previews and job events."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A finished image file, its seed, and the seconds that each stage took."""

    data: bytes
    seed: int
    format: str
    metrics: dict[str, Any]
    warnings: tuple[str, ...] = ()  #: about the request that asked for it

    def save(self, path: str | Path) -> Path:
        """Write the file; create its folder if it is missing."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.data)
        return target


@dataclass(frozen=True, slots=True)
class Preview:
    """An image file of a half-decoded image; `number` counts the previews of one image from 0."""

    data: bytes
    image_index: int
    number: int
    format: str


@dataclass(frozen=True, slots=True)
class JobEvent:
    """`type` is status, progress or partial_image, and finally the terminal state of the job."""

    id: str
    type: str
    data: dict[str, Any]
