"""The kinds of data folders, and one message for a folder of another kind or with damaged files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

from model.data.sources import DataError


class Kind(NamedTuple):
    """What a folder holds, what that is for, and the command that makes it."""

    name: str
    use: str
    made_by: str = "`make data`"


#: By the file that only folders of the kind have. An atlas is a folder of sprites too, so it comes first.
KINDS = {
    "breadth.jsonl": Kind("an atlas", "recipes with a [scenes] table and --suite scenes or breadth"),
    "sprites.npz": Kind("sprites of scenes", "recipes with a [scenes] table and --suite scenes"),
    "images.npy": Kind("packed images", "recipes without a [scenes] table and --suite emoji"),
    "latents.npy": Kind(
        "encoded images", "recipes without a [scenes] table", "`python -m model.training.latents.build`"
    ),
}


def require(folder: Path, file: str) -> None:
    """Check that the folder is of the kind that has `file`, one of KINDS.

    Raises:
        DataError: it is of another kind, or holds no data.
    """
    if (folder / file).is_file():
        return
    if file == "sprites.npz" and (folder / "breadth.jsonl").is_file():  # written after the breadth
        raise DataError(f"{folder} holds an atlas that is not complete: {file} is missing; run `make data` again")
    wanted = KINDS[file]
    held = next((kind for known, kind in KINDS.items() if (folder / known).is_file()), None)
    if held is None:
        raise DataError(f"no {wanted.name} in {folder}: run {wanted.made_by} first")
    raise DataError(
        f"{folder} holds {held.name}, for {held.use}; choose a folder with {wanted.name}, which {wanted.made_by} makes"
    )


@contextmanager
def replacing(folder: Path, last: str) -> Iterator[Path]:
    """A folder to write files to, which take the place of those in `folder` at the block's end.

    A process that has mapped the old ones keeps them. A kill leaves the old files, or a folder without the file `last`,
    but no mixture that can be read.
    """
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    (folder / last).unlink(missing_ok=True)
    for file in sorted(partial.iterdir(), key=lambda file: (file.name == last, file.name)):
        file.replace(folder / file.name)
    partial.rmdir()


@contextmanager
def reading(folder: Path, remedy: str = "run `make data` again") -> Iterator[None]:
    """Turn all that a missing or damaged file of the folder raises into a DataError with this remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise DataError(f"{folder} cannot be read ({type(error).__name__}: {error}): {remedy}") from error


def read_lines(file: Path) -> list[Any]:
    """The values of a file with one JSON value per line; `splitlines` would also cut at U+2028 and U+0085 in a text."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
