"""Warnings about the words of a prompt that a model does not know, or knows in another way than they are used."""

import re
from collections.abc import Sequence
from functools import lru_cache

from server.gateway.requests.vocabulary.nearest import NearestWords
from server.gateway.requests.vocabulary.reading import KnownWords, Reading
from server.model_info import ModelInfo

MAX_WORDS = 5  # named in one warning
MAX_CHARS = 40  # of one word
_TOKENS = re.compile(r"\w+|[^\w\s]+")  # every text encoder makes at least one token of each


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
    known = _known_words(
        (*info.vocabulary, *info.synonyms), info.styles, info.caption_words, info.backgrounds
    )  # fmt: skip
    found = known.read(prompt)
    warnings += _unknown(found, info, param)
    warnings += _too_many(found, known, info, param)
    if param == "prompt":
        warnings += _alone(found, info) or ([] if found.names or warnings else [_nothing(info)])
    return warnings


_known_words = lru_cache(maxsize=8)(KnownWords)


@lru_cache(maxsize=8)
def _nearest_words(
    vocabulary: tuple[str, ...], others: tuple[str, ...], hints: tuple[tuple[str, str], ...]
) -> NearestWords:
    return NearestWords(vocabulary, others, dict(hints))


def _unknown(found: Reading, info: ModelInfo, param: str) -> list[str]:
    others = (*info.synonyms, *info.styles, *info.caption_words)
    nearest = _nearest_words(info.vocabulary, others, tuple(info.hints.items()))
    told = [
        *(_shown(word, "nearest", nearest.find(word[:MAX_CHARS])) for word in dict.fromkeys(found.unknown)),
        *(_shown(f"{word} style", "styles", info.styles) for word in dict.fromkeys(found.strange_styles)),
        *(
            _shown(f"{word} background", "backgrounds", info.backgrounds)
            for word in dict.fromkeys(found.strange_backgrounds)
        ),
    ]
    if not told:
        return []
    more = f" and {len(told) - MAX_WORDS} more" if len(told) > MAX_WORDS else ""
    return [
        f"'{param}' has words that are not in the vocabulary of {info.id}: {', '.join(told[:MAX_WORDS])}{more}. GET "
        "/v1/models lists the vocabulary."
    ]


def _shown(word: str, what: str, near: Sequence[str]) -> str:
    shown = word if len(word) <= MAX_CHARS else word[:MAX_CHARS] + "…"
    return shown + (f" ({what}: {', '.join(near)})" if near else "")


def _too_many(found: Reading, known: KnownWords, info: ModelInfo, param: str) -> list[str]:
    """Counts beyond those of the captions that the model was trained on."""
    beyond = [word[:MAX_CHARS] for word, number in found.counts.items() if number > known.most > 0]
    if not beyond:
        return []
    return [f"'{param}' has counts beyond {known.most}, the largest that {info.id} has learned: {', '.join(beyond)}."]


def _alone(found: Reading, info: ModelInfo) -> list[str]:
    """Things of the breadth in company, in numbers, or in a style that the model has not seen of them."""
    breadth = frozenset(info.breadth)
    scenes = tuple(name for name in info.vocabulary if name not in breadth) + info.synonyms
    core = _known_words(scenes, info.styles, info.caption_words, info.backgrounds)
    # A "blue heart" may be one of the breadth, and is a heart of scenes in blue as well.
    names = dict.fromkeys(name for name in found.names if name in breadth and core.read(name).unknown)
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
        f"'{param}' has {least} words and signs or more; {info.id} reads the first {info.max_prompt_tokens} tokens, so "
        "that the end has no effect."
    ]
