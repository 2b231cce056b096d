"""GenEval's six categories of question (arXiv 2310.11513), asked of composed scenes.

An image is correct when its detections (detector.py) are exactly the things that the prompt states, in the stated
colours and relation, on the stated background. Style is scored by itself, size not at all. `falsified` and `renders`
make images whose answer is known, to measure the detector itself: real renders must pass, renders of a false fact must
fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from model.data.scenes.compose import SIZE, arrange, relation_holds, render
from model.data.scenes.facts import SCORED_CATEGORIES, Facts, Grammar, Group, unseen, unseen_content, unseen_style
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import BACKGROUNDS, COLOURS, OPPOSITE
from model.data.scenes.wording import prompt
from model.data.sources import DataError
from model.evaluation.detector import Detection

QUESTION_SEED = 20241021
REPEATS = 500  # samples without a new one, after which a category has no more
BACKGROUND_TOLERANCE = 40.0  # Euclidean distance in RGB, levels of 255; named backgrounds are 30 or more apart
RELATION_MARGIN = 8.0  # smallest distance in pixels at which a centre is left of, right of, above, below another


@dataclass(frozen=True)
class Question:
    """The facts that one prompt states.

    Attributes:
        styles_held_out: training never shows the things in held-out styles.
    """

    facts: Facts
    styles_held_out: bool = True

    @property
    def unseen(self) -> bool:
        """True if the facts contain a combination that training never shows."""
        return unseen(self.facts, self.styles_held_out)

    @property
    def new_style(self) -> bool:
        """True if training never shows one of the things in this style."""
        return self.styles_held_out and unseen_style(self.facts)

    @property
    def new_style_only(self) -> bool:
        """True if the only unseen combination is a thing in a style: not scored here, so neither seen nor unseen."""
        return self.new_style and not unseen_content(self.facts)

    @property
    def prompt(self) -> str:
        return prompt(self.facts)


def questions(grammar: Grammar, per_category: int, styles_held_out: bool = True) -> list[Question]:
    """The fixed prompts, all different: in each category half seen and half unseen combinations.

    Args:
        styles_held_out: of the training. If it held out none, the prompts are the same, and fewer are unseen.

    Raises:
        DataError: a category of these things has fewer.
    """
    out, fewest = [], per_category // 2
    for index, category in enumerate(SCORED_CATEGORIES):
        rng = np.random.default_rng((QUESTION_SEED, index))
        for of_unseen in (False, True):
            found = _distinct(grammar, rng, category, of_unseen, fewest)
            out += [Question(facts, styles_held_out) for facts in found]
            fewest = len(found)
    if fewest < per_category // 2:
        raise DataError(f"{per_category} prompts in each category: these things make at most {2 * fewest} prompts")
    return out


def _distinct(grammar: Grammar, rng: np.random.Generator, category: str, of_unseen: bool, count: int) -> list[Facts]:
    """`count` different facts; fewer if REPEATS of them in a row are known."""
    found: dict[Facts, None] = {}
    repeats = 0
    while len(found) < count and repeats < REPEATS:
        facts = replace(grammar.sample(rng, category, of_unseen), size="")
        repeats = repeats + 1 if facts in found else 0
        found[facts] = None
    return list(found)


def is_correct(facts: Facts, detections: Sequence[Detection], image: np.ndarray) -> bool:
    """Return True if an (H, W, 3) image and its detections match the facts, with nothing missing or added."""
    stated = facts.objects
    if (
        Counter(g.thing for g in stated) != Counter(d.thing for d in detections)
        or background(image) != facts.background
    ):
        return False
    orders = permutations(detections) if len(detections) <= 4 else ()
    return any(_matches(facts, stated, order) for order in orders)


def is_in_style(facts: Facts, detections: Sequence[Detection]) -> bool:
    """Return True if more than half of the detections are in the stated style; False if nothing is detected."""
    return 2 * sum(d.style == facts.style for d in detections) > len(detections)


def _matches(facts: Facts, stated: Sequence[Group], detections: Sequence[Detection]) -> bool:
    for group, detection in zip(stated, detections, strict=True):
        if group.thing != detection.thing or (group.colour and group.colour != detection.colour):
            return False
    if not facts.relation:
        return True
    return relation_holds(facts.relation, detections[0].centre, detections[1].centre, by=RELATION_MARGIN)


def background(image: np.ndarray) -> str:
    """The named background nearest to the median colour of the outer 3 pixels; "" if none is within tolerance."""
    rim = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3),
                          image[:, :3].reshape(-1, 3), image[:, -3:].reshape(-1, 3)])  # fmt: skip
    median = np.median(rim, axis=0)
    distance = {name: float(np.linalg.norm(median - colour)) for name, colour in BACKGROUNDS.items()}
    nearest = min(distance, key=distance.__getitem__)
    return nearest if distance[nearest] < BACKGROUND_TOLERANCE else ""


def falsified(facts: Facts, grammar: Grammar, rng: np.random.Generator) -> Facts:
    """The facts with one of them made false: a thing, the count, a colour, the relation, or two colours exchanged."""
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
    """One composed image for each of the facts; (P, SIZE, SIZE, 3) uint8."""
    out = np.zeros((len(facts), SIZE, SIZE, 3), np.uint8)
    for index, each in enumerate(facts):
        out[index] = render(arrange(each, np.random.default_rng((seed, index)), snap), sprites)
    return out


def scores_by_category(asked: Sequence[Question], correct: np.ndarray) -> dict[str, float | int | None]:
    """Mean score of each category: over all its questions, and over those with seen and with unseen combinations.

    Beside each mean, under its name with "_questions" behind it, is the number of its questions.

    Style is not scored here, so a question whose only unseen combination is a thing in a style enters its category's
    mean and no other. A category without further unseen questions (single_object) has None there and is left out of
    `score_unseen`. `score_seen` and `score_unseen` are means of the categories, as GenEval's overall score is.

    Args:
        correct: (questions,) share of each question's images that are correct.
    """
    out: dict[str, float | int | None] = {}
    for category in SCORED_CATEGORIES:
        mine = np.array([q.facts.category == category for q in asked])
        out |= {category: float(correct[mine].mean()), f"{category}_questions": int(mine.sum())}
    for name, of_unseen in (("score_seen", False), ("score_unseen", True)):
        means = []
        for category in SCORED_CATEGORIES:
            mine = np.array(
                [q.facts.category == category and q.unseen == of_unseen and not q.new_style_only for q in asked]
            )
            mean = float(correct[mine].mean()) if mine.any() else None
            means += [mean] if mean is not None else []
            cell = f"{category}_{name.removeprefix('score_')}"
            out |= {cell: mean, f"{cell}_questions": int(mine.sum())}
        out[name] = float(np.mean(means)) if means else None
    return out


def by_style(asked: Sequence[Question], name: str, values: np.ndarray) -> dict[str, float | int | None]:
    """Mean of the (questions,) values: of all, and of those whose things training shows in their style, and does not.

    A style says how a thing is drawn, so what was never seen in it can only be guessed, unlike a pair or a count.
    """
    new = np.array([q.new_style for q in asked])
    out: dict[str, float | int | None] = {name: float(values.mean())}
    for cell, mine in ((f"{name}_seen", ~new), (f"{name}_unseen", new)):
        out |= {cell: float(values[mine].mean()) if mine.any() else None, f"{cell}_questions": int(mine.sum())}
    return out


def percent(value: float | None) -> str:
    """Format a share as a percentage, or as a dash if no question was asked."""
    return "–" if value is None else f"{value:.1%}"
