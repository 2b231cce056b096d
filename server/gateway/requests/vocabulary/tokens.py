"""Splits prompts and names into words and signs, which compare by their singular and without accents."""

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

#: Irregular plurals, and endings of plurals with those of their singulars.
_IRREGULAR = {
    "children": "child", "feet": "foot", "geese": "goose", "mice": "mouse", "oxen": "ox", "people": "person",
    "teeth": "tooth",
}  # fmt: skip
LONGEST = 64  #: letters of a word that are looked at
_ENDINGS = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"), ("i", "us"))
_ATTACHED = frozenset(
    "\u200d\ufe0f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
)  # joiner, emoji form, skin tones


def split(text: str) -> list[str]:
    """The words of a text in lower case, without a genitive's s, and its signs, such as emoji, one by one.

    Punctuation and underscores separate; what is beyond LONGEST letters of a word is cut off.
    """
    runs = _runs(unicodedata.normalize("NFKC", text).lower())
    return [run.removesuffix("'s").rstrip("'")[:LONGEST] for run in runs]


def _runs(text: str) -> Iterator[str]:
    run, joins = "", False
    for char in text.replace("’", "'"):
        kind = unicodedata.category(char)
        in_word = kind[0] in "LN" or char == "'"
        attached = kind[0] == "M" or char in _ATTACHED or joins
        if run and (attached or (in_word and not is_sign(run))):
            run += char
        else:
            if run:
                yield run
            run = char if kind[0] in "LN" or kind == "So" else ""
        joins = char == "\u200d"
    if run:
        yield run


def is_sign(token: str) -> bool:
    """True of an emoji or another symbol, which no text encoder of words reads."""
    return unicodedata.category(token[0]) == "So"


@lru_cache(maxsize=8192)
def forms(word: str) -> frozenset[str]:
    """The word without accents, and what it is the plural of, if it is one: words are the same if they share a form."""
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn") or word
    found = {plain, _IRREGULAR.get(plain, plain)}
    for plural, singular in _ENDINGS:
        if plain.endswith(plural) and len(plain) > len(plural) + 1:
            found.add(plain.removesuffix(plural) + singular)
    return frozenset(found)
