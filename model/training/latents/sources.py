"""Captioned images of a folder, or of webdataset's tar files, in a fixed order.

A folder has a caption of the same name beside each image (photo.jpg, photo.txt), or a metadata.jsonl whose lines have
`file_name` and `text`, as the datasets library reads it. A tar file has KEY.jpg and KEY.txt, or KEY.json with a
`caption`, one after the other.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from model.data.sources import DataError

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
METADATA = "metadata.jsonl"
#: What Pillow raises for damaged files, and for EXIF data that do not follow the standard.
DAMAGE = (
    OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip


class Captioned(NamedTuple):
    """An image file and its caption; `name` is for people.

    Attributes:
        read: reads the file, at once or never; raises OSError or ValueError if that, or its caption, cannot be read.
    """

    name: str
    read: Callable[[], bytes]
    caption: str


def captioned_images(source: Path) -> Iterator[Captioned]:
    """Yield every image that has a caption: of a folder, of a tar file, or of all tar files in a folder.

    Raises:
        DataError: the source does not exist, or a file cannot be read.
    """
    if source.is_file() and source.suffix == ".tar":
        yield from _of_tar(source)
    elif not source.is_dir():
        raise DataError(f"{source} is neither a folder of images nor a .tar of webdataset")
    elif tars := sorted(source.glob("*.tar")):
        for tar in tars:
            yield from _of_tar(tar)
    elif (source / METADATA).is_file():
        yield from _of_metadata(source)
    else:
        yield from _of_folder(source)


def _of_folder(source: Path) -> Iterator[Captioned]:
    for path in sorted(source.rglob("*")):
        beside = path.with_suffix(".txt")
        if path.suffix.lower() in IMAGES and beside.is_file():
            name = str(path.relative_to(source))
            try:
                caption = beside.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                yield _unreadable(name, f"no caption in UTF-8 in {beside.name} ({error})")
            else:
                yield _captioned(name, path.read_bytes, caption)


def _of_metadata(source: Path) -> Iterator[Captioned]:
    try:
        lines = (source / METADATA).read_text(encoding="utf-8").split("\n")  # not splitlines, which cuts at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source / METADATA} cannot be read ({error}); save it as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            path, caption = source / entry["file_name"], _text(entry["text"])
            inside, found = path.resolve().is_relative_to(source.resolve()), path.is_file()
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{source / METADATA}, line {number} needs the strings `file_name` and `text` ({error!r})"
            raise DataError(message) from error
        if not inside:
            raise DataError(f"{source / METADATA}, line {number} names a file elsewhere: {entry['file_name']}")
        if not found:
            raise DataError(f"{source / METADATA}, line {number}: there is no {path}")
        yield _captioned(entry["file_name"], path.read_bytes, caption)


def _of_tar(tar: Path) -> Iterator[Captioned]:
    """Members of one key are next to each other, as webdataset demands."""
    try:
        with tarfile.open(tar) as opened:
            for key, members in groupby(filter(tarfile.TarInfo.isfile, opened), lambda member: _key(member.name)[0]):
                found = {_key(member.name)[1]: member for member in members}
                image = next((found[suffix] for suffix in found if f".{suffix}" in IMAGES), None)
                if image is None:
                    continue
                name = f"{tar.name}/{key}"
                try:
                    caption = _caption(opened, found)
                except ValueError as error:
                    yield _unreadable(name, f"no caption in its JSON ({error})")
                    continue
                if caption:
                    yield _captioned(name, partial(_read, opened, image), caption)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{tar} cannot be read ({error}); copy it again") from error


def _caption(opened: tarfile.TarFile, found: dict[str, tarfile.TarInfo]) -> str:
    if "txt" in found:
        return _read(opened, found["txt"]).decode("utf-8", "replace")
    metadata = json.loads(_read(opened, found["json"])) if "json" in found else {}
    return _text(metadata.get("caption", "")) if isinstance(metadata, dict) else ""


def _text(caption: object) -> str:
    """Raise ValueError for null, or a list of captions: `str` would make words of it that nobody wrote."""
    if not isinstance(caption, str):
        raise ValueError(f"{caption!r} is no text")
    return caption


def _captioned(name: str, read: Callable[[], bytes], caption: str) -> Captioned:
    line = " ".join(caption.split())
    return Captioned(name, read, line) if line else _unreadable(name, "its caption is empty")


def _read(opened: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stored = opened.extractfile(member)
    return stored.read() if stored else b""


def _unreadable(name: str, reason: str) -> Captioned:
    """An image that is skipped, and listed with the reason."""

    def read() -> bytes:
        raise ValueError(reason)

    return Captioned(name, read, "")


def _key(name: str) -> tuple[str, str]:
    """Key and suffix as webdataset has them: the name up to the first dot of its last part, and what follows."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def square(file: bytes, size: int) -> Image.Image:
    """The centre square of an image, size × size RGB; transparency becomes white.

    Raises:
        ValueError: it is no image, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(file)) as opened:
            upright = ImageOps.exif_transpose(opened)
            image = upright.convert("RGBA") if upright.has_transparency_data else upright.convert("RGB")
    except DAMAGE as error:
        raise ValueError(f"no image that can be read ({type(error).__name__}: {error})") from error
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white.convert("RGB")
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
