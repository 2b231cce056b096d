"""`fluid edit` and `fluid vary`: pictures that start from a picture, through a running service."""

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from server.cli.progress import Status
from server.client import FluidClient
from server.client.results import GeneratedImage
from server.errors import EditRefused
from server.images.codec import numbered


def edit(
    client: FluidClient, picture: Path, prompt: str, out: Path, options: dict[str, Any], *,
    mask: Path | None = None, box: tuple[int, int, int, int] | None = None,
) -> list[Path]:  # fmt: skip
    """Draw a part anew: what is transparent in `mask`, what lies in `box` (left, top, right, bottom; pixels), or
    what is transparent in the picture itself.

    Raises:
        EditRefused: a file cannot be read, or the box is no part of the picture. ServiceError: what the service said.
    """
    image = _read(picture)
    hole = _read(mask) if mask else _mask_of(box, image, picture) if box else None
    with Status(f"editing {picture.name}") as status:
        status.say("waiting for the service")
        drawn = client.edit(prompt, image, hole, **options)
    return _save(drawn, out)


def vary(client: FluidClient, picture: Path, out: Path, options: dict[str, Any]) -> list[Path]:
    """Draw a picture again around a random part of it.

    Raises:
        EditRefused: the file cannot be read. ServiceError: what the service said.
    """
    image = _read(picture)
    with Status(f"varying {picture.name}") as status:
        status.say("waiting for the service")
        drawn = client.vary(image, **options)
    return _save(drawn, out)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EditRefused(f"cannot read {path}: {error.strerror}.") from error


def _mask_of(box: tuple[int, int, int, int], image: bytes, path: Path) -> bytes:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            width, height = opened.size
    except UnidentifiedImageError as error:
        raise EditRefused(f"{path} is not a PNG, WebP or JPEG file.") from error
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise EditRefused(f"--box {left} {top} {right} {bottom} is no part of {path}: it has {width}x{height} pixels.")
    mask = Image.new("RGBA", (width, height), "black")
    mask.paste((0, 0, 0, 0), box)
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def _save(drawn: list[GeneratedImage], out: Path) -> list[Path]:
    saved = []
    for index, picture in enumerate(drawn):
        for warning in picture.warnings if index == 0 else ():
            print(warning, file=sys.stderr)
        saved.append(picture.save(numbered(out, index, len(drawn))))
        print(f"{saved[-1]}  seed {picture.seed}")
    return saved
