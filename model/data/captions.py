"""Concepts that the emoji model learns, and their captions.

A *concept* is one emojibase entry ("red apple"), a *style* one of four artists' versions of it. The concepts are the
vocabulary that a user may type, so the rules below prefer short everyday nouns and leave out what 64 pixels cannot show
(clock faces, seals, text) or what only differs in a detail ("oncoming bus").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STYLES = ("3d", "noto", "twemoji", "flat")

# emojibase group numbers -> the longest label, in words, that we take from the group
GROUPS = {
    0: 0,
    3: 2,
    4: 2,
    5: 2,
    6: 2,
    7: 2,
}  # smileys (by name only), nature, food, places, leisure, objects

# Most faces differ in details too small for 64 px: these are the few well-known ones.
SMILEYS = frozenset(
    "grinning face|winking face|thinking face|smiling face with sunglasses|sleeping face|crying face|angry face|"
    "smiling face with heart-eyes|partying face|cowboy hat face|nerd face|exploding head|skull|ghost|alien|robot|"
    "clown face|pile of poo|ogre|goblin|red heart|orange heart|yellow heart|green heart|blue heart|purple heart|"
    "brown heart|black heart|broken heart|heart on fire|heart with arrow|love letter|collision|grinning cat|"
    "alien monster|sparkling heart".split("|")
)
LONGER = frozenset({"sun with face", "four leaf clover", "pot of food", "glass of milk", "bow and arrow"})

# Labels whose image nearly equals that of a simpler one, shows text, or is a symbol rather than a thing.
LEFT_OUT = re.compile(
    r"o.clock|thirty|banknote|mailbox|oncoming|japanese|full moon face|moon face|speaker|tray|"
    r"gibbous|quarter moon|new moon|musical (score|notes)|place medal|\bsuit\b|"
    r"(dog|cat|tiger|horse|cow|pig|monkey|mouse|rabbit|dragon) face|guide dog|service dog|black bird|"
    r"pig nose|paw prints|(baby|hatching|front-facing baby) chick|motorway|stop sign|index|"
    r"page |(chart|bar|incoming|envelope|bookmark|card|label|locked|unlocked|link|chains|outbox|inbox)\b|"
    r"kaaba|synagogue|mosque|hindu|shinto|shrine|menorah|nazar|hamsa|prayer|funeral|coffin|headstone|"
    r"cigarette|placard|identification|e-mail|receipt|credit|dvd|fax|pager|elevator|no-|level slider|"
    r"control knobs|mobile phone with|telephone receiver|love hotel|post office|office building|"
    r"convenience|department|bridge|cityscape|at dusk|foggy|fog$|milky|building|"
    r"(orange|blue|green) book|notebook|ledger|spiral|tear-off|calendar|clipboard|file|folder|memo|"
    r"low battery|optical disk|computer disk|film|trackball|videocassette|ticket|mahjong|joker|"
    r"bikini|briefs|swimsuit|kimono|sari|woman|man.s|knot$|yarn$|thread|military|rescue|bust|hole"
)

# Things that few users would ask for by this name; leaving them out gives the others more training.
RARE = frozenset(
    "stuffed flatbread|oden|dango|moon cake|rice cracker|curry rice|tanabata tree|pine decoration|carp streamer|"
    "wind chime|lacrosse|field hockey|cricket game|curling stone|abacus|alembic|petri dish|derelict house|hut|"
    "suspension railway|mountain cableway|aerial tramway|mountain railway|tram car|light rail|monorail|trolleybus|"
    "minibus|railway car|articulated lorry|auto rickshaw|motorized wheelchair|manual wheelchair|oil drum|"
    "barber pole|national park|hot springs|mount fuji|Tokyo tower|bellhop bell|hourglass done|mantelpiece clock|"
    "timer clock|high voltage|cyclone|wind face|reminder ribbon|firecracker|sparkler|rugby football|flying disc|"
    "softball|goal net|running shirt|chess pawn|performing arts|lab coat|clutch bag|thong sandal|flat shoe|"
    "hair pick|billed cap|postal horn|studio microphone|long drum|musical keyboard|banjo|maracas|diya lamp|"
    "black nib|pushpin|linked paperclips|old key|pick|carpentry saw|clamp|white cane|satellite antenna|crutch|"
    "x-ray|plunger|moai|microbe|worm|cockroach|mosquito|fly|rosette|wilted flower|mate|sake|tumbler glass|"
    "pouring liquid|beverage box|amphora|ginger root|tamale|falafel|fondue|seat|construction|station|sauropod|"
    "dodo|badger|boar|ox|orangutan|llama|desert island|camping|wedding|cooking|video camera|slot machine|"
    "bus stop|railway track|airplane arrival|small airplane|motor boat|passenger ship|clinking glasses".split("|")
)


@dataclass(frozen=True, slots=True)
class Concept:
    """One emojibase entry: its name, other words for it, and its code point as in file names."""

    label: str
    tags: tuple[str, ...]
    hexcode: str  # lower case, without the variation selector fe0f


def normalise_hexcode(hexcode: str) -> str:
    """Normalise a code point sequence to the spelling that all packages are compared in ("1f34e")."""
    return hexcode.lower().replace("-fe0f", "")


def all_concepts(emojibase: list[dict]) -> list[Concept]:
    """All concepts of GROUPS without skin-tone variants, in emojibase order."""
    return [
        Concept(
            label=entry["label"].replace("’", "'"),
            tags=tuple(entry.get("tags", ())),
            hexcode=normalise_hexcode(entry["hexcode"]),
        )
        for entry in emojibase
        if entry.get("group") in GROUPS and "skins" not in entry
    ]


def in_vocabulary(concept: Concept, group: int) -> bool:
    """Return True if the model learns this concept; the others train the image tokenizer only."""
    if concept.label in SMILEYS or concept.label in LONGER:
        return True
    words = len(concept.label.replace("-", " ").split())
    return words <= GROUPS.get(group, 0) and concept.label not in RARE and not LEFT_OUT.search(concept.label.lower())


def captions(concept: Concept, style: str) -> list[str]:
    """Four wordings for one image; training picks among them at random.

    The last one names no style on purpose, so that "a red apple" alone means an apple in any style.
    """
    label = concept.label
    spare = [tag for tag in concept.tags if tag not in label.lower().split() and tag != label.lower()]
    also = f" ({', '.join(spare[:2])})" if spare else ""
    return [
        f"{label}, {style} style",
        f"{with_article(label)}, {style} style",
        f"{label}{also}, {style} style",
        with_article(label),
    ]


def with_article(label: str) -> str:
    """Put "a" or "an" before a label; labels that end in a plural s stay as they are."""
    if label.endswith("s") and not label.endswith(("ss", "us", "is")):
        return label
    return f"{'an' if label[0].lower() in 'aeiou' else 'a'} {label}"
