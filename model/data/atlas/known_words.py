"""The words that a model knows after training on a bank of captions, for its config.json."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from model.data.atlas.atlas_bank import AtlasBank
from model.data.scenes.bank import SceneBank
from model.data.scenes.facts import PORTRAIT
from model.data.scenes.things import BACKGROUNDS, THINGS, TRANSPARENT
from model.data.scenes.wording import caption_words


def known_words(bank: SceneBank) -> dict[str, Any]:
    """Things of scenes with their other names, styles, the breadth, and the other words of captions."""
    things = list(dict.fromkeys(g.thing for facts in bank.facts for g in facts.groups if g.thing in THINGS))
    return {
        "vocabulary": things,
        "synonyms": other_names(things),
        "styles": list(dict.fromkeys(facts.style for facts in bank.facts)),
        **scene_grammar(bank),
        **breadth_vocabulary(bank),
    }


def breadth_vocabulary(bank: SceneBank) -> dict[str, Any]:
    """The nouns that an atlas trains alone, for a checkpoint's config.json: in two styles or more, and in one."""
    if not isinstance(bank, AtlasBank):
        return {}
    entries = [entry for entry in bank.entries if entry.split == "train" and not entry.sentence]
    known = sorted({entry.noun for entry in entries if entry.styles > 1})
    single = sorted({entry.noun for entry in entries if entry.styles == 1})
    chosen = {"breadth_styles": list(bank.breadth_styles)} if bank.breadth_styles else {}
    return {"breadth": known, "breadth_in_one_style": single, **chosen}


def keywords(bank: SceneBank) -> dict[str, list[str]]:
    """Words that name nothing that an atlas trains alone, and the nouns that they are keywords of."""
    entries = bank.entries if isinstance(bank, AtlasBank) else []
    nouns: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.split == "train" and not entry.sentence and entry.styles > 1:
            for word in (*entry.keywords, *entry.also):
                nouns[word.lower()].add(entry.noun)
    names = {entry.noun.lower() for entry in entries}
    return {word: sorted(nouns[word]) for word in sorted(nouns.keys() - names) if any(map(str.isalpha, word))}


def scene_grammar(scenes: SceneBank) -> dict[str, Any]:
    """The other words of captions of scenes, for a checkpoint's config.json; portraits have words of their own."""
    if any(facts.category == PORTRAIT for facts in scenes.facts):
        return {}
    backgrounds = {facts.background for facts in scenes.facts}
    return {
        "caption_words": caption_words(),
        "backgrounds": [name for name in (*BACKGROUNDS, TRANSPARENT) if name in backgrounds],
    }


def other_names(things: Sequence[str]) -> list[str]:
    """The other names of things that captions of scenes use, plurals included."""
    names = {name for thing in things for name in (THINGS[thing].plural, *THINGS[thing].synonyms)}
    return sorted(names - set(things))
