"""Finds the known words that resemble an unknown one, by its meaning, its parts or its letters."""

import difflib
import itertools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from server.gateway.requests.vocabulary.reading import FUNCTION_WORDS
from server.gateway.requests.vocabulary.tokens import forms, is_sign, split

SHOWN = 3  # names for one word
COMPARED = 60  # known words that are compared with an unknown one, letter by letter
SIMILAR = 0.66  # difflib's ratio; at its default of 0.6 "asdfgh" is near "wash" where thousands of names are known
SHORT, SIMILAR_SHORT = 4, 0.75  # for words of few letters, of which two in common are no resemblance
SHORTEST_PART = 4  # letters of a part of a name


class NearestWords:
    """An index of a model's names, and of the parts of longer ones.

    Letters are compared for the words with the most letter pairs in common: comparing with all of 1,800 names takes
    4.6 ms a word, nine times as long, in which the gateway does nothing else.
    """

    def __init__(
        self,
        vocabulary: Iterable[str],
        synonyms: Iterable[str] = (),
        others: Iterable[str] = (),
        hints: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """
        Args:
            others: other words that may be suggested: styles, colours.
            hints: words that mean names: "aubergine" -> ["eggplant"].
        """
        names = list(dict.fromkeys(vocabulary))
        lower = {name.lower() for name in names}
        # No plural beside its singular; of two that differ in case alone, the first.
        things = [*names, *(other for other in synonyms if lower.isdisjoint(forms(other.lower())))]
        self._things = {name.lower(): name for name in reversed(things)}
        self._whole = {other.lower(): other for other in others} | self._things
        self._joined = {word.replace(" ", ""): name for word, name in self._whole.items() if " " in word}
        self._hints = {form: of for word, of in (hints or {}).items() for form in forms(word.lower())}
        self._parts: dict[str, list[str]] = defaultdict(list)
        for name in names:
            parts = split(name)
            for part in parts if len(parts) > 1 else ():
                if len(part) >= SHORTEST_PART and part not in FUNCTION_WORDS:
                    for form in forms(part):
                        self._parts[form].append(name)
        self._by_pair: dict[str, list[str]] = defaultdict(list)
        for word in [*self._whole, *(part for part in self._parts if part not in self._whole)]:
            for pair in _pairs(word):
                self._by_pair[pair].append(word)

    def find(self, word: str) -> list[str]:
        """Up to SHOWN names, the most likely first."""
        found = self._by_sign(word) if is_sign(word) else (self._by_meaning(word) or self._by_letters(word))
        return list(dict.fromkeys(found))[:SHOWN]

    def _by_sign(self, sign: str) -> list[str]:
        """The names in an emoji's own name."""
        described = unicodedata.name(sign[0], "").lower()
        thing = self._things.get(described)
        return [thing] if thing else [self._things[word] for word in described.split() if word in self._things]

    def _by_meaning(self, word: str) -> list[str]:
        own = sorted(forms(word))
        meant = [self._joined[form] for form in own if form in self._joined]
        parts = {name for form in own for name in self._parts.get(form, ())}
        meant += sorted(parts, key=lambda name: (len(name), name))
        return meant + [name for form in own for name in self._hints.get(form, ())]

    def _by_letters(self, word: str) -> list[str]:
        shared = Counter(known for pair in sorted(_pairs(word)) for known in self._by_pair.get(pair, ()))
        likely = [known for known, _ in shared.most_common(COMPARED)]
        cutoff = SIMILAR_SHORT if len(word) <= SHORT else SIMILAR
        close = difflib.get_close_matches(word, likely, n=SHOWN, cutoff=cutoff)
        whole = [self._whole[each] for each in close if each in self._whole]
        return whole or [min(self._parts[each], key=len) for each in close]


def _pairs(word: str) -> frozenset[str]:
    return frozenset(map("".join, itertools.pairwise(f"^{word}$")))
