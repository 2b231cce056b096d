"""Parametric portraits: DiceBear avatars whose traits are chosen here, so that every caption is true of its image.

Captions state only what is plain to see at 112 pixels, in the words of the style's own options. They never state skin
colour or gender.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.data.scenes.things import Thing
from model.data.scenes.wording import with_article
from model.data.sources import DataError, Source, fetch_package, render_svg

CORE_PACKAGE = "@dicebear/core@9.4.3"
HAIR = {
    "black": "1c1c1c", "brown": "7a4a21", "blonde": "e6bf5a", "red": "b5341d", "gray": "a9a9a9", "blue": "2f6fd6",
    "green": "35a852", "pink": "f07fb4", "purple": "8a4fc8",
}  # fmt: skip
SKIN = ["ffdbb4", "edb98a", "d08b5b", "ae5d29"]
SHIRTS = {"red": "e78276", "yellow": "fdea6b", "green": "78e185", "blue": "8fa7df", "pink": "e279c7"}
# Caption word -> Lorelei's mouths and glasses that show it plainly.
MOUTHS = {
    "happy": ["happy01", "happy02", "happy05", "happy06", "happy07", "happy09", "happy16"],
    "sad": ["sad04", "sad05", "sad07"],
}
GLASSES = {"round glasses": ["variant01"], "sunglasses": ["variant02"], "glasses": ["variant04", "variant05"]}
# Caption word -> Pixel Art's hair styles whose look matches their name.
PIXEL_HAIR = {
    "long": [f"long{n:02d}" for n in range(1, 22) if n not in (5, 10, 11, 14, 15)],
    "short": [f"short{n:02d}" for n in range(1, 25) if n != 11],
}
# Open Peeps' name of a head -> caption words for it.
HEADS = {
    "afro": "an afro", "bun": "a bun", "mohawk": "a mohawk", "hatHip": "a hat", "hatBeanie": "a beanie",
    "hijab": "a hijab", "turban": "a turban", "noHair1": "a bald head", "long": "long hair",
    "longCurly": "long curly hair", "short1": "short hair", "dreads1": "dreadlocks", "flatTop": "a flat top",
}  # fmt: skip
FACES = {"smileBig": "smiling", "veryAngry": "angry", "calm": ""}


@dataclass(frozen=True, slots=True)
class Look:
    """Traits that a caption may state about a portrait.

    Attributes:
        options: the DiceBear options that make it true.
    """

    options: dict[str, Any]
    mood: str  # "happy", or "" for nothing to say
    traits: tuple[str, ...]  # each after "with": "green hair", "round glasses"
    clothes: str = ""  # after the traits: "in a blue shirt"

    def thing(self, style: str, number: int) -> Thing:
        """The portrait as a thing whose name and synonyms describe it; its label is the key of its sprite."""
        person, face = (" ".join(word for word in (self.mood, noun) if word) for noun in ("person", "face"))
        traits = _listed(self.traits)
        wordings = [f"{person} with {traits}", f"{person} with {_listed(self.traits[::-1])}", f"{face} with {traits}"]
        if not self.clothes:  # with clothes, the longer wording would exceed the text encoder's limit
            wordings.append(f"portrait of {with_article(person)} with {traits}")
        plain, *others = (f"{wording} {self.clothes}".strip() for wording in wordings)
        return Thing(plain, plain, f"portrait {style} {number:03d}", tuple(others))


def _listed(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _lorelei(rng: np.random.Generator) -> Look:
    hair, mood = str(rng.choice(list(HAIR))), str(rng.choice(list(MOUTHS)))
    glasses = str(rng.choice(("", "", *GLASSES)))
    beard = rng.random() < 0.15
    flowers = not beard and rng.random() < 0.25
    options = {
        "hairColor": [HAIR[hair]], "skinColor": [str(rng.choice(SKIN))], "mouth": MOUTHS[mood],
        "earringsProbability": 0, "frecklesProbability": 0, "glassesProbability": 100 * bool(glasses),
        "glasses": GLASSES.get(glasses, []),
        "beardProbability": 100 * beard, "hairAccessoriesProbability": 100 * flowers,
    }  # fmt: skip
    traits = (f"{hair} hair", "a beard" * beard, glasses, "flowers in the hair" * flowers)
    return Look(options, "" if beard else mood, tuple(filter(None, traits)))  # a beard hides the mouth


def _peeps(rng: np.random.Generator) -> Look:
    head, face = str(rng.choice(list(HEADS))), str(rng.choice(list(FACES)))
    eyes = str(rng.choice(("", "glasses", "sunglasses")))
    chin = str(rng.choice(("", "", "full", "moustache1"))) if head != "hijab" else ""
    shirt = str(rng.choice(list(SHIRTS)))
    options = {
        "head": [head], "face": [face], "clothingColor": [SHIRTS[shirt]], "skinColor": [str(rng.choice(SKIN))],
        "maskProbability": 0, "accessoriesProbability": 100 * bool(eyes), "facialHairProbability": 100 * bool(chin),
        **({"accessories": [eyes]} if eyes else {}), **({"facialHair": [chin]} if chin else {}),
    }  # fmt: skip
    beard = {"": (), "full": ("a beard",), "moustache1": ("a moustache",)}[chin]
    traits = (HEADS[head], *beard, *((eyes,) if eyes else ()))
    return Look(options, "" if chin else FACES[face], traits, f"in a {shirt} shirt")


def _pixel(rng: np.random.Generator) -> Look:
    hair, length = str(rng.choice(list(HAIR))), str(rng.choice(("long", "short")))
    glasses = str(rng.choice(("", "dark")))
    options = {
        "hair": PIXEL_HAIR[length], "hairColor": [HAIR[hair]], "hatProbability": 0,
        "beardProbability": 0, "accessoriesProbability": 0, "glassesProbability": 100 * bool(glasses),
        "glasses": [f"dark{n:02d}" for n in range(1, 8)], "glassesColor": ["191919"],
    }  # fmt: skip
    return Look(options, "", (f"{length} {hair} hair", *(("dark glasses",) if glasses else ())))


# Style, as captions call it -> its package and the function that samples a look.
PORTRAITS: dict[str, tuple[Source, Callable[[np.random.Generator], Look]]] = {
    "lorelei": (Source("lorelei", "@dicebear/lorelei@9.4.3", "Lorelei", "Lisa Wischofsky", "CC0-1.0",
                       "https://www.dicebear.com/styles/lorelei"), _lorelei),
    "peeps": (Source("peeps", "@dicebear/open-peeps@9.4.3", "Open Peeps", "Pablo Stanley", "CC0-1.0",
                     "https://www.openpeeps.com"), _peeps),
    "pixel": (Source("pixel", "@dicebear/pixel-art@9.4.3", "Pixel Art", "Florian Körner (DiceBear)", "CC0-1.0",
                     "https://www.dicebear.com/styles/pixel-art"), _pixel),
}  # fmt: skip


def looks(style: str, count: int) -> list[Look]:
    """The first `count` of a style's portraits, which are fixed."""
    rngs = (np.random.default_rng((20241125, number)) for number in range(count))
    return [PORTRAITS[style][1](rng) for rng in rngs]


def render_portraits(style: str, chosen: list[Look], cache: Path, side: int) -> list[Image.Image]:
    """Render looks as RGBA images of `side` pixels.

    Raises:
        DataError: Node.js is missing, slow or failed; the message ends with its error output.
    """
    core, drawer = (_installed(package, cache) for package in (CORE_PACKAGE, PORTRAITS[style][0].package))
    asked = [{"seed": str(number), **look.options} for number, look in enumerate(chosen)]
    command = ["node", str(Path(__file__).with_name("avatars.mjs")), str(core), str(drawer)]
    try:
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=600)
    except FileNotFoundError as error:
        raise DataError("Node.js is not installed: install it, then run `make data` again") from error
    except subprocess.CalledProcessError as error:
        raise DataError(f"node could not render {style} portraits: {error.stderr.strip()[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"node took more than {error.timeout:g} s for {style} portraits: run it again") from error
    return [render_svg(json.loads(line)["svg"], side) for line in done.stdout.splitlines()]


def _installed(spec: str, cache: Path) -> Path:
    """Folder of an npm package in a shared node_modules, because styles import the core by its name."""
    name = spec.rpartition("@")[0]
    folder = cache.resolve() / "avatars" / "node_modules" / name
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")  # a kill in the middle leaves no half of a package
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(fetch_package(spec, cache), partial)
        partial.rename(folder)
    return folder
