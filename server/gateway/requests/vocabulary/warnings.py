"""Warnings about the words of a prompt that a model does not know, or knows in another way than they are used."""

import re
from collections.abc import Sequence

from server.gateway.requests.vocabulary.nearest import NearestWords
from server.gateway.requests.vocabulary.reading import KnownWords, Reading
from server.model_info import ModelInfo

MAX_WORDS = 5  # named in one warning
MAX_CHARS = 40  # of one word
MAX_MODELS = 16  # whose words are kept
_TOKENS = re.compile(r"\w+")  # every text encoder makes at least one token of each


def prompt_warnings(prompt: str, info: ModelInfo, param: str = "prompt") -> list[str]:
    """Return what a caller should know about the words of a prompt, one warning for each kind of trouble.

    A class-conditional model refuses what it does not know, and one without a vocabulary may know any word.

    Args:
        param: the parameter that holds the prompt.
    """
    if info.labels:
        return []
    warnings = _cut(prompt, info, param)
    if not info.vocabulary or not prompt.strip():
        return warnings
    words = _words_of(info)
    found = words.known.read(prompt)
    warnings += _unknown(found, words, param) + _too_many(found, words, param)
    if param == "prompt":
        warnings += _alone(found, words) or ([] if found.names or warnings else [_nothing(info)])
    return warnings


class _Words:
    """What is looked up for a model, built once."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.breadth = frozenset(info.breadth)
        scenes = [name for name in info.vocabulary if name not in self.breadth]
        grammar = (info.styles, info.caption_words, info.backgrounds)
        self.known = KnownWords([*info.vocabulary, *info.synonyms], *grammar)
        self.core = KnownWords([*scenes, *info.synonyms], *grammar)
        others = (*info.styles, *info.caption_words)
        self.nearest = NearestWords(info.vocabulary, info.synonyms, others, info.hints)


_kept: dict[int, _Words] = {}  # by the id of a description, which its entry keeps alive


def _words_of(info: ModelInfo) -> _Words:
    """The index of a model, as long as its description is the same object: the fleet decodes it again if it changes."""
    kept = _kept.get(id(info))
    if kept is None or kept.info is not info:
        while len(_kept) >= MAX_MODELS:
            _kept.pop(next(iter(_kept)))
        kept = _kept[id(info)] = _Words(info)
    return kept


def _unknown(found: Reading, words: _Words, param: str) -> list[str]:
    info = words.info
    strange = [
        *(("nearest", word, None) for word in dict.fromkeys(found.unknown)),
        *(("styles", f"{word} style", info.styles) for word in dict.fromkeys(found.strange_styles)),
        *(("backgrounds", f"{word} background", info.backgrounds) for word in dict.fromkeys(found.strange_backgrounds)),
    ]
    if not strange:
        return []
    told = [
        _shown(word, what, words.nearest.find(word[:MAX_CHARS]) if near is None else near)
        for what, word, near in strange[:MAX_WORDS]
    ]
    more = f" and {len(strange) - MAX_WORDS} more" if len(strange) > MAX_WORDS else ""
    return [
        f"'{param}' has words that are not in the vocabulary of {info.id}: {', '.join(told)}{more}. GET /v1/models "
        "lists the vocabulary."
    ]


def _shown(word: str, what: str, near: Sequence[str]) -> str:
    shown = word if len(word) <= MAX_CHARS else word[:MAX_CHARS] + "…"
    return shown + (f" ({what}: {', '.join(near)})" if near else "")


def _too_many(found: Reading, words: _Words, param: str) -> list[str]:
    """Counts beyond those of the captions that the model was trained on."""
    most = words.known.most
    beyond = [word[:MAX_CHARS] for word, number in found.counts.items() if number > most > 0][:MAX_WORDS]
    if not beyond:
        return []
    return [f"'{param}' has counts beyond {most}, the largest that {words.info.id} has learned: {', '.join(beyond)}."]


def _alone(found: Reading, words: _Words) -> list[str]:
    """Things of the breadth in company, in numbers, or in a style that the model has not seen of them."""
    info = words.info
    # A "blue heart" may be one of the breadth, and is a heart of scenes in blue as well.
    names = dict.fromkeys(n for n in found.names if n in words.breadth and words.core.read(n).unknown)
    styles = info.breadth_styles or info.styles
    composed = len(set(found.names)) > 1 or any(number > 1 for number in found.counts.values())
    if not names or not (composed or (found.styles and not set(found.styles) & set(styles))):
        return []
    return [
        f"'prompt' names {', '.join(list(names)[:MAX_WORDS])}: {info.id} has learned such things one at a time"
        + (f", in the styles {' and '.join(styles)} alone." if info.breadth_styles else ".")
    ]


def _nothing(info: ModelInfo) -> str:
    return f"'prompt' names no thing of the vocabulary of {info.id}. GET /v1/models lists it."


def _cut(prompt: str, info: ModelInfo, param: str) -> list[str]:
    """The gateway has no tokenizer: it tells of prompts that are too long however they are split."""
    least = len(_TOKENS.findall(prompt))
    if not info.max_prompt_tokens or least <= info.max_prompt_tokens:
        return []
    return [
        f"'{param}' has {least} words; {info.id} reads the first {info.max_prompt_tokens} tokens, so "
        "that the end has no effect."
    ]
