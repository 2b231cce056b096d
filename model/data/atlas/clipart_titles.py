"""Names of Open Clip Art's drawings: the known noun that a drawing's title ends in.

Titles are free text by hundreds of authors ("Cartoon Cat", "An Apple", "dog on a leash"). A drawing counts only if the
head of its title is a noun that another set draws, so that its caption is true and its style is a second one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterator
from pathlib import Path

from model.data.atlas.naming import LONGEST, canonical

# Folders of the library that hold things, as opposed to icons, flags, patterns and symbols.
FOLDERS = (
    "animals", "buildings", "containers", "decorations", "education", "electronics", "food", "geography/astronomy",
    "people/clothing", "people/bodypart", "plants", "recreation/holiday", "recreation/music", "recreation/party",
    "recreation/sports", "recreation/toys", "science", "signs_and_symbols/weather", "tools", "transportation/boating",
    "transportation/vehicles", "transportation/*.svg", "computer/hardware", "office", "recreation/*.svg",
)  # fmt: skip
_TITLE = re.compile(r"<(?:dc:title|title)[^>]*>([^<]+)<")
_CUT = re.compile(r"\b(?:on|with|in|at|by|of|for|and|from|under|over|to|behind)\b|[-,;:(/]")
_NOISE = frozenset(
    "a an the another simple cartoon clip art clipart icon image drawing picture stylized coloured colored "
    "colour color line toy small big little cute happy funny realistic basic".split()
)
_PLAIN = frozenset("black white bw silhouette outline lineart".split())  # without the colours of the thing


def titled_drawings(root: Path, known: Container[str]) -> Iterator[tuple[str, Path]]:
    """Yield the noun and the file of each drawing whose title names something in `known`, in path order."""
    files = {file for folder in FOLDERS for file in root.glob(folder if "*" in folder else f"{folder}/**/*.svg")}
    for file in sorted(files):
        if noun := title_noun(_title(file), known):
            yield noun, file


def _title(file: Path) -> str:
    found = _TITLE.search(file.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else ""


def title_noun(title: str, known: Container[str]) -> str | None:
    """The longest known noun at the end of the title's first phrase, or None.

    "Cartoon Cat" -> "cat"; "dog on a leash" -> "dog"; "apple (B and W)" -> None, for it lacks the colours of an apple.
    """
    lower = title.lower()
    if _PLAIN.intersection(re.findall(r"[a-z]+", lower)) or "b and w" in lower:
        return None
    words = [word for word in re.findall(r"[a-z']+", _CUT.split(lower.strip(), maxsplit=1)[0]) if word not in _NOISE]
    for length in range(min(LONGEST, len(words)), 0, -1):
        noun = canonical(" ".join(words[-length:]))
        if noun in known:
            return noun
        if noun.endswith("s") and canonical(noun[:-1]) in known:
            return None  # several of the thing: the caption would say one
    return None


def folder_digest(files: list[Path], root: Path) -> str:
    """SHA-256 over the names and contents of the files: what a changed package differs in."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
