"""Reads a prompt as a model of known words does: its names, styles and counts, and what is none of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from server.gateway.requests.vocabulary.tokens import forms, split

#: Words around what is asked for, which change nothing in the image.
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any and or with of on in at to from for by as into is are be it its his her
    their my your i me we you want would like please draw paint show create make generate give there image picture
    emoji style styled colored coloured colorful colourful background
    """.split()
)
#: Words of captions, for models that do not publish theirs: media, counts, colours, sizes, positions.
USUAL_WORDS = frozenset(
    """
    no not without photo photograph drawing illustration icon sticker render
    one two three four five six seven eight nine ten single pair couple group several many few
    red orange yellow green blue purple violet pink brown black white gray grey gold golden silver transparent
    bright dark light pale small little tiny big large huge plain
    left right above over below under underneath beneath beside between behind front next near top bottom middle center
    centre side
    """.split()
)
_NUMBERS = {
    word: number
    for number, word in enumerate(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split(), 1
    )
} | {"dozen": 12, "twenty": 20, "hundred": 100}
_STYLE, _BACKGROUND = ("style", "styled"), ("background", "backdrop")


@dataclass(slots=True)
class Reading:
    """What a prompt says, as far as the words are known.

    Attributes:
        unknown: words and signs that are not known.
        strange_styles, strange_backgrounds: words before "style" and "background" that name none of the model.
        counts: numbers as they are written, with their values.
    """

    names: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    strange_styles: list[str] = field(default_factory=list)
    strange_backgrounds: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class KnownWords:
    """The names, styles and caption words of a model."""

    def __init__(
        self, names: Iterable[str], styles: Sequence[str], caption_words: Iterable[str], backgrounds: Iterable[str]
    ) -> None:
        """No `caption_words`: the usual ones, and counts of any size. No `backgrounds`: any."""
        self.styles = tuple(styles)
        words = tuple(caption_words)
        self.most = max((_NUMBERS.get(word, 0) for word in words), default=0)  #: largest count; 0: unknown
        self.backgrounds = frozenset(backgrounds)
        self._words = frozenset(form for word in (words or USUAL_WORDS) for form in forms(word))
        self._phrases: dict[str, list[tuple[list[str], str]]] = defaultdict(list)
        for name in dict.fromkeys((*names, *styles)):
            words_of_name = split(name)
            for form in forms(words_of_name[0]) if words_of_name else ():
                self._phrases[form].append((words_of_name, name))

    def read(self, prompt: str) -> Reading:
        """Find the longest known name at each place, and sort the other words."""
        tokens, found, place = split(prompt), Reading(), 0
        while place < len(tokens):
            length, name = self._name_at(tokens, place)
            if name:
                (found.styles if name in self.styles else found.names).append(name)
                place += length
            else:
                self._sort(tokens[place], "".join(tokens[place + 1 : place + 2]), found)
                place += 1
        return found

    def _name_at(self, tokens: Sequence[str], place: int) -> tuple[int, str]:
        """The number of words of the longest name that begins here, and the name; 0 and "" if there is none.

        Of names of one length, the one that is written like this comes before those whose plural or singular is: a
        hash's order of forms must not decide, which differs from process to process.
        """
        best, rank = (0, ""), (0, 0)
        for form in sorted(forms(tokens[place])):
            for parts, name in self._phrases.get(form, ()):
                here = tokens[place : place + len(parts)]
                alike = len(here) == len(parts) and all(map(_same, parts, here))
                if alike and (found := (len(parts), sum(map(str.__eq__, parts, here)))) > rank:
                    best, rank = (len(parts), name), found
        return best

    def _sort(self, word: str, following: str, found: Reading) -> None:
        number = int(word) if word.isdecimal() and len(word) < 10 else _NUMBERS.get(word)
        if number is not None or word.isdecimal():
            found.counts[word] = 10**9 if number is None else number
        elif word in FUNCTION_WORDS or (len(word) == 1 and word.isascii()):
            return
        elif following in _STYLE and self.styles:
            found.strange_styles.append(word)
        elif following in _BACKGROUND and self.backgrounds:
            if word not in self.backgrounds:
                found.strange_backgrounds.append(word)
        elif self._words.isdisjoint(forms(word)):
            found.unknown.append(word)


def _same(one: str, other: str) -> bool:
    """True of a word and its plural."""
    return not forms(one).isdisjoint(forms(other))
