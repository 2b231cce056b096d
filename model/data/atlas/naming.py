"""From names of icons to nouns: what a set calls "castle-2-flat" is a castle, and "arrow-left-1" is nothing to draw."""

from __future__ import annotations

import re
from functools import lru_cache

from model.data.scenes.things import THINGS

LONGEST = 3  # words of a name

# A name that contains one of these words is a symbol of a user interface, a brand, or nothing that can be seen.
NOT_THINGS = frozenset(
    """
    add subtract remove delete edit check checklist checked cancel close open off on up down left right top bottom
    arrow arrows align alignment alternate app apps application layout layouts layer layers interface input output
    button buttons cursor click pointer select selection drag drop filter sort sorting setting settings preference menu
    navigation dashboard login logout sign signin signout upload download share sharing send sent reply inbox outbox
    archive attach attachment copy paste cut duplicate move resize rotate flip expand shrink maximize minimize zoom
    crop fit scroll scale grid list bullet text font paragraph format formatting quote heading bold italic underline
    code coding programming program script browser web website webpage window windows tab page url http link hyperlink
    server database network wifi bluetooth signal connection connect sync synchronize refresh reload update cloud data
    file files folder document documents note notes content form task todo calendar schedule event date time history
    user users account profile person people man woman human male female member team group contact contacts avatar
    agent customer client employee boss staff manager guest
    chat message messages comment conversation bubble mail email call voicemail notification notifications alert warning
    error info information help support question feedback review rating rate like dislike love favorite bookmark
    google facebook twitter instagram youtube whatsapp linkedin pinterest apple-logo microsoft android ios amazon paypal
    visa mastercard bitcoin ethereum crypto cryptocurrency blockchain adobe figma github gitlab slack spotify netflix
    tiktok snapchat reddit discord dribbble behance logo brand symbol icon meta linux css html javascript python java
    ui ux api sdk php sql ai generate artificial intelligence
    graph chart analytics statistics stats report trend growth increase decrease high low percent percentage number
    bar pie line dot dots circle square triangle rectangle hexagon octagon diamond-shape ellipse oval shape shapes
    horizontal vertical diagonal center middle front back forward backward next previous first last begin end start stop
    play pause record rewind eject skip shuffle repeat volume mute sound voice speaker-off
    lock unlock security protect protection secure password key-lock access permission private public verify verified
    validation approve approved reject block blocked disable disabled enable allowances not
    bank banking money payment pay cash currency dollar euro pound yen finance financial invest investment price tax
    cost budget discount coupon sale buy sell market marketing business company corporate office deal contract
    transfer transaction exchange refund bill invoice receipt credit debit
    work job career hr management strategy plan planning project process workflow flow hierarchy organization structure
    define definition description language translate translation version
    image images picture pictures photo photos album gallery video videos movie slide slides slideshow media multimedia
    audio screen monitor display desktop
    search find view show hide visible hidden preview eye-off look
    new old more less plus minus multiply divide equal greater than sum infinity abstract
    save load import export print scan loading loader progress status state mode option options switch toggle slider
    control controls configure configuration config
    seo campaign target audience engagement insight solution problem issue service services quality
    device devices product products package-add delivery shipping ship-add
    abc az za ascending descending alphabetical order
    religion gender lesbian gay bisexual transgender
    unicode iso usb hdmi vga rss nfc gps atm vpn faq pdf jpg png gif svg psd zip exe
    one two three four five six seven eight nine zero
    half quarter filled empty full small large medium big tiny huge double triple multiple single
    extreme overcast uv celsius fahrenheit humidity pressure horizon beaufort
    card jack queen-of spades clubs hearts-card suits
    i is of to in for from by at and or no non with without off-line online offline between into out over under
    """.split()
)
# Names, in the singular, of things that the words above would remove, and that are worth keeping.
KEPT = frozenset(
    "cloud,calendar,monitor,package,key,envelope,folder,window,picture frame,photo camera,video camera,movie camera,"
    "old key,diamond,open book,credit card,bank,hourglass,bar chart,pie chart,arrow".split(",")
)
_SUFFIX = re.compile(r"(?:[\s-]+\d+|\d+)$")

_BY_LABEL = {thing.label: thing.name for thing in THINGS.values()}
_BY_SYNONYM = {word: thing.name for thing in THINGS.values() for word in thing.synonyms}


@lru_cache(maxsize=65536)
def canonical(name: str) -> str:
    """One name for one thing: a core thing's own name for its emoji label and its synonyms."""
    return _BY_LABEL.get(name) or (name if name in THINGS else _BY_SYNONYM.get(name, name))


def icon_noun(icon: str) -> str | None:
    """The noun that an icon's name stands for, or None if it is not the name of a thing.

    "castle-2" -> "castle"; "shopping-basket" -> "shopping basket"; "arrow-left-1" -> None.
    """
    words = _SUFFIX.sub("", icon.lower().replace("_", "-"))
    while words != (shorter := _SUFFIX.sub("", words)):
        words = shorter
    parts = words.replace("-", " ").split()
    noun = " ".join(parts)
    if not 1 <= len(parts) <= LONGEST or any(len(part) < 2 or not part.isalpha() for part in parts) or len(noun) < 3:
        return None
    if noun not in KEPT and NOT_THINGS.intersection(parts):
        return None
    return canonical(noun)
