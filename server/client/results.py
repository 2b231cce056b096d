"""Results of the clients: images, previews and job events."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file at once, and its folder if that is missing: a full disk or a kill leaves none, or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


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
        return write_whole(Path(path), self.data)


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
