"""Captions of the breadth, and variations of any caption: all of them true of the same image."""

from __future__ import annotations

import re

import numpy as np

from model.data.atlas.store import Entry
from model.data.scenes.facts import SINGLE, Facts, Group, held_out
from model.data.scenes.things import COLOURS
from model.data.scenes.wording import ground, with_article

DEFAULT_STYLE = "3d"  # that of a scene whose prompt names none
STYLELESS_SHARE = 0.4  # of the captions of images in their default style
SYNONYM_SHARE, TAGS_SHARE, PLAIN_SHARE = 0.5, 0.15, 0.2
ARTICLE_SHARE, SPELLING_SHARE, ORDER_SHARE = 0.1, 0.04, 0.25  # of the captions that are varied in this way
SHORTEST_MISSPELT = 5  # letters
COLOURED_SHARE = 0.25  # of the captions of things with one main hue
COLOUR_WORDS = {*COLOURS, "black", "white", "brown", "gray", "grey"}
INK = ("black", *COLOURS)  # colours of one-colour cut-outs


def entry_caption(entry: Entry, facts: Facts, rng: np.random.Generator) -> str:
    """A random wording of a single thing of the breadth, on the facts' background."""
    (group,) = facts.groups
    noun = entry.noun
    if entry.also and rng.random() < (0.75 if entry.sentence else SYNONYM_SHARE):
        noun = str(rng.choice(entry.also))
    noun = f"{group.colour} {noun}" if group.colour else noun
    phrase = noun if rng.random() < PLAIN_SHARE else indefinite(noun)
    if entry.tags and rng.random() < TAGS_SHARE:
        phrase += f" ({', '.join(entry.tags)})"
    if not (entry.default and rng.random() < STYLELESS_SHARE):
        phrase += f", {entry.style} style"
    return _on(phrase, facts, rng)


def entry_prompt(entry: Entry, colour: str = "", background: str = "white") -> str:
    """The plainest wording, used in evaluation: "a fire engine, noto style"; a background other than white is named."""
    thing = indefinite(f"{colour} {entry.noun}" if colour else entry.noun)
    return f"{thing}, {entry.style} style{ground(background)}"


def entry_facts(entry: Entry, rng: np.random.Generator, background: str) -> Facts:
    """The facts of a single thing; a one-colour thing gets a random colour, one with a main hue sometimes."""
    colour = str(rng.choice(INK)) if entry.one_colour else ""
    if entry.colourable and rng.random() < COLOURED_SHARE:
        colour = str(rng.choice(list(COLOURS)))
        if held_out("colour", entry.noun, colour) or says_a_colour(entry):  # "a red blue heart" would be false
            colour = ""
    return Facts(SINGLE, entry.style, (Group(entry.key, 1, colour),), background)


def says_a_colour(entry: Entry) -> bool:
    """True if a caption of the thing may name a colour that is its own: "blue heart"."""
    words = re.findall(r"[a-z]+", " ".join((entry.noun, *entry.also, *entry.tags)).lower())
    return not COLOUR_WORDS.isdisjoint(words)


def indefinite(noun: str) -> str:
    """The noun with an article, unless it ends as a plural does."""
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is")):
        return noun
    return with_article(noun)


def settle_style(caption: str, facts: Facts, rng: np.random.Generator) -> str:
    """Name the style unless it is the default one, and often leave that out: a prompt without a style draws it."""
    named = f"{facts.style} style"
    if facts.style != DEFAULT_STYLE:
        return caption if named in caption else f"{caption}, {named}"
    if rng.random() < STYLELESS_SHARE:
        return caption.replace(f"{named}, ", "").replace(f", {named}", "")
    return caption


def varied(caption: str, rng: np.random.Generator) -> str:
    """The caption as somebody in a hurry would type it: style first or as an adjective, no articles, a slip."""
    if rng.random() < ORDER_SHARE:
        caption = _style_moved(caption, rng)
    if rng.random() < ARTICLE_SHARE:
        caption = re.sub(r"\b(?:an?|some) ", "", caption)
    if rng.random() < SPELLING_SHARE:
        caption = misspelt(caption, rng)
    return caption


def misspelt(caption: str, rng: np.random.Generator) -> str:
    """One slip in one word: two letters swapped, one left out, or one doubled; never the first letter."""
    words = [found.span() for found in re.finditer(rf"[a-z]{{{SHORTEST_MISSPELT},}}", caption)]
    if not words:
        return caption
    start, end = words[int(rng.integers(len(words)))]
    at = int(rng.integers(start + 1, end - 1))
    one, two = caption[at], caption[at + 1]
    slip = (two + one, two, one + one + two)[int(rng.integers(3))]
    return caption[:at] + slip + caption[at + 2 :]


def _style_moved(caption: str, rng: np.random.Generator) -> str:
    found = re.fullmatch(r"(.+?), ([a-z0-9 ]+) style(| on an? \w+ background)", caption)
    if found is None:
        return caption
    subject, style, ground = found.groups()
    plain = re.sub(r"^an? ", "", subject)
    forms = [f"{subject} in {style} style{ground}", f"{style} style, {subject}{ground}"]
    if plain != subject and not re.search(r" (?:and|with|next to|left|right|above|below|over|under|in) ", subject):
        forms.append(f"{indefinite(f'{style} {plain}')}{ground}")
    return forms[int(rng.integers(len(forms)))]


def _on(phrase: str, facts: Facts, rng: np.random.Generator) -> str:
    if facts.background == "white":
        return f"{phrase} on a white background" if rng.random() < 0.05 else phrase
    return f"{phrase} on a {facts.background} background"
