"""Prompts of class-conditional models: what people type -> the one name that the model knows a class by."""

import difflib
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from server.errors import InvalidRequest


def match_label(prompt: str, labels: Sequence[str], model: str) -> str:
    """The first name of the class that is meant.

    Args:
        labels: entry i names class i, "first, second, …"; first names are unique.
    A class is meant by its index, its first name, or another of its names that no other class has; case and a leading
    article do not matter.

    Raises:
        InvalidRequest: none or several; the message names the closest ones.
    """
    wanted = _normal(prompt)
    if wanted.isdecimal():
        if int(wanted) < len(labels):
            return _first(labels[int(wanted)])
        raise InvalidRequest(f"'prompt' {wanted[:20]} is no label of {model}: 0 to {len(labels) - 1}.", param="prompt")
    firsts, others = _index(tuple(labels))
    if wanted in firsts:
        return _first(labels[firsts[wanted]])
    meant = others.get(wanted, [])
    if len(meant) == 1:
        return _first(labels[meant[0]])
    if meant:
        choice = "; ".join(f"{i}: {labels[i]}" for i in meant)
        raise InvalidRequest(f"'prompt' {prompt[:100]!r} names several labels of {model} ({choice}).", param="prompt")
    close = difflib.get_close_matches(wanted, [*firsts, *others], n=5, cutoff=0.6)
    names = list(dict.fromkeys(_first(labels[firsts[c] if c in firsts else others[c][0]]) for c in close))
    hint = f" Close to it: {', '.join(names)}." if names else " GET /v1/models lists them."
    raise InvalidRequest(
        f"'prompt' {prompt[:100]!r} is none of the {len(labels)} labels that {model} draws.{hint}", param="prompt"
    )


def _first(label: str) -> str:
    return label.split(",", 1)[0]


def _normal(name: str) -> str:
    return re.sub(r"^(an?|the)\s+", "", " ".join(name.lower().replace("_", " ").split()))


@lru_cache(maxsize=4)
def _index(labels: tuple[str, ...]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """First names -> class; all other names, and first names without their "(index)" -> classes."""
    firsts = {_normal(_first(label)): i for i, label in enumerate(labels)}
    others: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        bare = re.sub(r" \(\d+\)$", "", _first(label))
        for name in {_normal(bare), *(_normal(part) for part in label.split(",")[1:])} - firsts.keys():
            others[name].append(i)
    return firsts, dict(others)
