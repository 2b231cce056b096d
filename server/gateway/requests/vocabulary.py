"""Name the words of a prompt that are not in the model's published vocabulary."""

import difflib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache

from server.model_info import ModelInfo

MAX_WORDS = 5  # named in one warning
MAX_CHARS = 40  # of one word
COMPARED = 60  # known words that are compared with an unknown one, letter by letter
SIMILAR = 0.66  # difflib's ratio; at its default of 0.6 "asdfgh" is near "wash" where thousands of names are known
_WORDS = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
#: Words of a caption beside its things and styles: grammar, counts, colours, sizes, positions and the image itself.
_CAPTION_WORDS = frozenset(
    """
    a an the this that these those some any no not and or with without of on in at to from for by as into is are be it
    its his her their my your one two three four five six seven eight nine ten single pair couple group several many few
    red orange yellow green blue purple violet pink brown black white gray grey gold golden silver colored coloured
    colorful colourful bright dark light pale small little tiny big large huge
    left right above over below under underneath beneath beside between behind front next near top bottom middle center
    centre side image picture photo drawing illustration icon emoji sticker render style styled background plain
    """.split()
)


def vocabulary_warnings(prompt: str, info: ModelInfo, param: str = "prompt") -> list[str]:
    """Return a warning with the unknown words and the nearest known ones; none for a model without a vocabulary.

    A class-conditional model refuses what it does not know, so it has no such warning.

    Args:
        param: the parameter that holds the prompt.
    """
    if not info.vocabulary or info.labels:
        return []
    known = _known_words(info.vocabulary + info.synonyms, info.styles)
    unknown = list(dict.fromkeys(word for word in _words(prompt) if not _is_known(word, known)))
    if not unknown:
        return []
    shown = [_with_nearest(word, info.vocabulary) for word in unknown[:MAX_WORDS]]
    more = f" and {len(unknown) - MAX_WORDS} more" if len(unknown) > MAX_WORDS else ""
    return [
        f"'{param}' has words that are not in the vocabulary of {info.id}: {', '.join(shown)}{more}. GET /v1/models "
        "lists the vocabulary."
    ]


def _words(text: str) -> Iterator[str]:
    return (found.replace("’", "'").removesuffix("'s") for found in _WORDS.findall(text.lower()))


@lru_cache(maxsize=8)
def _known_words(vocabulary: tuple[str, ...], styles: tuple[str, ...]) -> frozenset[str]:
    return _CAPTION_WORDS.union(*(_words(text) for text in (*vocabulary, *styles)))


def _is_known(word: str, known: frozenset[str]) -> bool:
    """Single letters and numbers count as known, and so does the plural of a known word."""
    return (len(word) == 1 and word.isascii()) or word.isdecimal() or not known.isdisjoint(_singulars(word))


def _singulars(word: str) -> Iterator[str]:
    yield word
    for plural, singular in (
        ("s", ""),
        ("es", ""),
        ("ies", "y"),
        ("ves", "f"),
        ("ves", "fe"),
        ("men", "man"),
        ("i", "us"),
    ):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            yield word.removesuffix(plural) + singular


class NearestWords:
    """Finds the known words that resemble an unknown one: those with the most letter pairs in common are compared.

    Comparing with all of 1,800 names takes 4.6 ms a word, nine times as long, in which the gateway does nothing else.
    """

    def __init__(self, vocabulary: tuple[str, ...]):
        self.names = {part: name for name in vocabulary for part in (*_words(name), name.lower())}
        self._by_pair: dict[str, list[str]] = defaultdict(list)
        for word in self.names:
            for pair in _pairs(word):
                self._by_pair[pair].append(word)

    def find(self, word: str) -> list[str]:
        """Up to three names, most similar first."""
        shared = Counter(known for pair in _pairs(word) for known in self._by_pair.get(pair, ()))
        likely = [known for known, _ in shared.most_common(COMPARED)]
        close = difflib.get_close_matches(word, likely, n=3, cutoff=SIMILAR)
        return list(dict.fromkeys(self.names[each] for each in close))


def _pairs(word: str) -> frozenset[str]:
    return frozenset(map("".join, itertools.pairwise(f"^{word}$")))


_nearest_words = lru_cache(maxsize=8)(NearestWords)


def _with_nearest(word: str, vocabulary: tuple[str, ...]) -> str:
    near = _nearest_words(vocabulary).find(word[:MAX_CHARS])
    shown = word if len(word) <= MAX_CHARS else word[:MAX_CHARS] + "…"
    return shown + (f" (nearest: {', '.join(near)})" if near else "")
