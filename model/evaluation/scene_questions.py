"""Does the picture show what the prompt states? GenEval's six questions (arXiv 2310.11513), asked of composed scenes.

Each drawing is judged by a detector trained on renders (evaluation/detector.py): exactly the named things, in the named
colours, in the named relation, on the named background. How far to trust it is measured with the same prompts: real
renders must pass (ceiling) and renders with one fact made false must fail (reject). Style and size are not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from model.data.scenes.compose import SIZE, arrange, relation_holds, render
from model.data.scenes.facts import SCORED_CATEGORIES, Facts, Grammar, Group, unseen_content
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import BACKGROUNDS, COLOURS, OPPOSITE
from model.data.scenes.wording import prompt
from model.evaluation.detector import Found

SUITE_SEED = 20241021
BACKGROUND_WITHIN = 40.0  # levels of 255, as a distance in RGB; the named ones are 30 and more apart
RELATION_BY = 8.0  # pixels that a centre must lie off to be left of, right of, above, below


@dataclass(frozen=True)
class Question:
    """One prompt of the suite. unseen: it contains a combination that training never shows."""

    facts: Facts
    unseen: bool

    @property
    def new_style_only(self) -> bool:
        """All that is unseen is a thing in a style, which nobody judges: neither `seen` nor `unseen` counts it."""
        return self.unseen and not unseen_content(self.facts)

    @property
    def prompt(self) -> str:
        return prompt(self.facts)


def questions(grammar: Grammar, per_category: int) -> list[Question]:
    """The fixed prompts: for each category half seen, half unseen combinations, all different."""
    out = []
    for place, category in enumerate(SCORED_CATEGORIES):
        rng = np.random.default_rng((SUITE_SEED, place))
        for unseen in (False, True):
            known: set[Facts] = set()
            while len(known) < per_category // 2:
                facts = replace(grammar.sample(rng, category, unseen), size="")
                if facts not in known:
                    known.add(facts)
                    out.append(Question(facts, unseen))
    return out


def shows(facts: Facts, found: Sequence[Found], picture: np.ndarray) -> bool:
    """Whether the things found in the picture (H, W, 3) are what the facts state, no more and no fewer."""
    wanted = facts.objects
    if Counter(g.thing for g in wanted) != Counter(f.thing for f in found) or background(picture) != facts.background:
        return False
    orders = permutations(found) if len(found) <= 4 else ()
    return any(_fits(facts, wanted, order) for order in orders)


def _fits(facts: Facts, wanted: Sequence[Group], found: Sequence[Found]) -> bool:
    for group, thing in zip(wanted, found, strict=True):
        if group.thing != thing.thing or (group.colour and group.colour != thing.colour):
            return False
    return not facts.relation or relation_holds(facts.relation, found[0].centre, found[1].centre, by=RELATION_BY)


def background(picture: np.ndarray) -> str:
    """The named background nearest to the median colour of the picture's rim, 3 pixels wide; "" if none is near."""
    rim = np.concatenate([picture[:3].reshape(-1, 3), picture[-3:].reshape(-1, 3),
                          picture[:, :3].reshape(-1, 3), picture[:, -3:].reshape(-1, 3)])  # fmt: skip
    middle = np.median(rim, axis=0)
    apart = {name: float(np.linalg.norm(middle - colour)) for name, colour in BACKGROUNDS.items()}
    nearest = min(apart, key=apart.__getitem__)
    return nearest if apart[nearest] < BACKGROUND_WITHIN else ""


def falsified(facts: Facts, grammar: Grammar, rng: np.random.Generator) -> Facts:
    """The same with one stated fact made false: a thing, the count, a colour, the relation or who has which colour."""
    first, rest = facts.groups[0], facts.groups[1:]
    if facts.category == "counting":
        count = int(rng.choice([c for c in (1, 2, 3, 4) if c != first.count]))
        return replace(facts, groups=(replace(first, count=count),))
    if facts.category == "colors":
        colour = str(rng.choice([c for c in COLOURS if c != first.colour]))
        return replace(facts, groups=(replace(first, colour=colour),))
    if facts.category == "position":
        return replace(facts, relation=OPPOSITE[facts.relation])
    if facts.category == "color_attribution":
        second = facts.groups[1]
        return replace(facts, groups=(replace(first, colour=second.colour), replace(second, colour=first.colour)))
    others = [t for t in grammar.by_style[facts.style] if t not in {g.thing for g in facts.groups}]
    return replace(facts, groups=(replace(first, thing=str(rng.choice(others))), *rest))


def renders(facts: Sequence[Facts], sprites: Sprites, seed: int, snap: int = 4) -> np.ndarray:
    """A real picture of each; (P, SIZE, SIZE, 3) uint8."""
    out = np.zeros((len(facts), SIZE, SIZE, 3), np.uint8)
    for place, each in enumerate(facts):
        out[place] = render(arrange(each, np.random.default_rng((seed, place)), snap), sprites)
    return out


def by_category(asked: Sequence[Question], right: np.ndarray) -> dict[str, float | None]:
    """Mean over the questions of each category, and over those with seen and unseen combinations.

    A combination of thing and style is not judged, so questions unseen by that alone are in a category's own mean and
    in no other; a category that has no other unseen ones (single_object) has None there and is left out of
    `score_unseen`.

    right: (questions,) share of the pictures of a question that show it. GenEval's overall score is the mean of the
    categories, so `score_seen` and `score_unseen` are, too.
    """
    out: dict[str, float | None] = {}
    for category in SCORED_CATEGORIES:
        mine = np.array([q.facts.category == category for q in asked])
        out[category] = float(right[mine].mean())
    for name, unseen in (("score_seen", False), ("score_unseen", True)):
        means = []
        for category in SCORED_CATEGORIES:
            mine = np.array(
                [q.facts.category == category and q.unseen == unseen and not q.new_style_only for q in asked]
            )
            mean = float(right[mine].mean()) if mine.any() else None
            means += [mean] if mean is not None else []
            out[f"{category}_{name.removeprefix('score_')}"] = mean
        out[name] = float(np.mean(means)) if means else None
    return out


def share(value: float | None) -> str:
    """A share in per cent, or a dash for what was not asked."""
    return "–" if value is None else f"{value:.1%}"
