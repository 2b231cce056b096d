"""Match the prompt of a class-conditional model to one of its class labels."""

import difflib
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from server.errors import InvalidRequest


def match_label(prompt: str, labels: Sequence[str], model: str) -> str:
    """Return the first name of the class that the prompt names.

    A prompt names a class by its index, by its first name, or by another of its names that no other class shares.
    Case and a leading article are ignored.

    Args:
        labels: entry i holds the names of class i, "first, second, …"; first names are unique.

    Raises:
        InvalidRequest: no class matches, or several do; the message lists the closest ones.
    """
    wanted = _normalize(prompt)
    if wanted.isdecimal():
        if int(wanted) < len(labels):
            return _first_name(labels[int(wanted)])
        raise InvalidRequest(
            f"'prompt' {wanted[:20]} is not a label of {model}: use 0 to {len(labels) - 1}.", param="prompt"
        )
    firsts, others = _index(tuple(labels))
    if wanted in firsts:
        return _first_name(labels[firsts[wanted]])
    matches = others.get(wanted, [])
    if len(matches) == 1:
        return _first_name(labels[matches[0]])
    if matches:
        choice = "; ".join(f"{i}: {labels[i]}" for i in matches)
        raise InvalidRequest(f"'prompt' {prompt[:100]!r} matches several labels of {model} ({choice}).", param="prompt")
    close = difflib.get_close_matches(wanted, [*firsts, *others], n=5, cutoff=0.6)
    names = list(dict.fromkeys(_first_name(labels[firsts[c] if c in firsts else others[c][0]]) for c in close))
    hint = f" Similar: {', '.join(names)}." if names else " GET /v1/models lists them."
    raise InvalidRequest(
        f"'prompt' {prompt[:100]!r} is not one of the {len(labels)} labels of {model}.{hint}", param="prompt"
    )


def _first_name(label: str) -> str:
    return label.split(",", 1)[0]


def _normalize(name: str) -> str:
    return re.sub(r"^(an?|the)\s+", "", " ".join(name.lower().replace("_", " ").split()))


@lru_cache(maxsize=4)
def _index(labels: tuple[str, ...]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Map first names to one class, and all other names (first names without "(index)" included) to any number."""
    firsts = {_normalize(_first_name(label)): i for i, label in enumerate(labels)}
    others: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        bare = re.sub(r" \(\d+\)$", "", _first_name(label))
        for name in {_normalize(bare), *(_normalize(part) for part in label.split(",")[1:])} - firsts.keys():
            others[name].append(i)
    return firsts, dict(others)
