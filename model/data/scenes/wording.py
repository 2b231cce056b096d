"""Captions of facts. All wordings of the same facts state exactly those facts, so each is true of the image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from model.data.scenes.facts import PORTRAIT, Facts, Group
from model.data.scenes.things import COLOURS, COUNTS, RELATIONS, THINGS, Thing

SYNONYM_SHARE = 0.15
PLURAL_NAMES = ("grapes", "cherries")
JOINERS = ("and", "and", "next to", "with")
FRAMES = ("{}", "{}", "{}", "{}", "a picture of {}", "an icon of {}")
PORTRAIT_SYNONYM_SHARE = 0.75  # a portrait has up to three synonyms: all its wordings are about equally likely


def with_article(words: str) -> str:
    """Put "a" or "an" before a noun phrase.

    Differs from the function of model/data/captions.py, which says "an unicorn" and on which the digest of emoji-64's
    data depends.
    """
    return f"{'an' if words[0].lower() in 'aeiou' and not words.startswith('uni') else 'a'} {words}"


def noun_phrase(
    group: Group, size: str = "", noun: str | None = None, numeral: bool = False, words: Mapping[str, Thing] = THINGS
) -> str:
    """A group as a noun phrase: "a small red apple", "three cacti" or, with `numeral`, "3 cacti"."""
    noun = noun or words[group.thing].call(group.count)
    phrase = " ".join(word for word in (size, group.colour, noun) if word)
    if group.count == 1:
        return f"some {phrase}" if noun in PLURAL_NAMES else with_article(phrase)
    return f"{group.count if numeral else COUNTS[group.count]} {phrase}"


def prompt(facts: Facts, words: Mapping[str, Thing] = THINGS) -> str:
    """The plainest wording, used in evaluation: "a red apple above a car, flat style on a blue background"."""
    phrases = [noun_phrase(group, facts.size, words=words) for group in facts.groups]
    return _finish(_join(phrases, facts, RELATIONS[facts.relation][0] if facts.relation else ""), facts)


def caption(facts: Facts, rng: np.random.Generator, words: Mapping[str, Thing] = THINGS) -> str:
    """A random wording: varies synonyms, digits, order, and whether the style is named."""
    phrases = []
    for group in facts.groups:
        synonyms = words[group.thing].synonyms
        noun = None
        share = PORTRAIT_SYNONYM_SHARE if facts.category == PORTRAIT else SYNONYM_SHARE
        if group.count == 1 and synonyms and rng.random() < share:
            noun = str(rng.choice(synonyms))
        phrases.append(noun_phrase(group, facts.size, noun, numeral=rng.random() < 0.15, words=words))
    relation = str(rng.choice(RELATIONS[facts.relation])) if facts.relation else ""
    if not facts.relation:
        phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    subject = _join(phrases, facts, relation, joiner=str(rng.choice(JOINERS)))
    frame = str(rng.choice(FRAMES))
    if facts.category != PORTRAIT:  # portraits have their own frames
        subject = frame.format(subject)
    form = rng.random()
    if form < 0.15:
        return _background(subject, facts, rng)
    if form < 0.3:
        return f"{facts.style} style, {_background(subject, facts, rng)}"
    if form < 0.5:
        return f"{_background(subject, facts, rng)}, {facts.style} style"
    return _finish(subject, facts)


def caption_words() -> list[str]:
    """The words that captions of scenes may have beside names of things and styles; without those of portraits."""
    relations = {word for wordings in RELATIONS.values() for text in wordings for word in text.split()}
    frames = {word for text in (*JOINERS, *FRAMES) for word in text.format("").split()}
    grammar = {"a", "an", "some", "on", "in", "background", "style", "big", "small"} | relations | frames
    return [*COUNTS.values(), *COLOURS, *sorted(grammar)]


def _join(phrases: list[str], facts: Facts, relation: str, joiner: str = "and") -> str:
    if facts.relation:
        return f"{phrases[0]} {relation} {phrases[1]}"
    if len(phrases) == 1:
        return phrases[0]
    if len(phrases) == 2:
        return f"{phrases[0]} {joiner} {phrases[1]}"
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _finish(subject: str, facts: Facts) -> str:
    return f"{subject}, {facts.style} style{ground(facts.background)}"


def ground(background: str) -> str:
    """How the plainest wording ends: a white background is left unsaid."""
    return "" if background == "white" else f" on a {background} background"


def _background(subject: str, facts: Facts, rng: np.random.Generator) -> str:
    if facts.background == "white":  # mostly left unsaid
        return f"{subject} on a white background" if rng.random() < 0.1 else subject
    return f"{subject} on a {facts.background} background"
