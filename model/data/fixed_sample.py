"""A data folder of any kind as a `Dataset`: packed images as they are, sprites as a fixed sample of scenes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.data.atlas.atlas_bank import beside_scenes
from model.data.atlas.atlas_dataset import atlas_dataset
from model.data.atlas.store import AtlasSprites, Entry, is_atlas_folder
from model.data.dataset import Dataset
from model.data.scenes.dataset import TOKENIZER_SEED, is_scene_folder, scene_dataset
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import COMMON, THINGS


def load_images(
    data: Path, things: int | None, snap: int, train: int = 0, unseen: int = 0, about: Mapping[str, Any] | None = None,
    seed: int = TOKENIZER_SEED,
) -> Dataset:  # fmt: skip
    """The packed data set in `data`, or a sample of scenes (and of the breadth) if the folder holds sprites.

    Args:
        things, snap: of scenes: the first things that may appear, and the raster of their corners, pixels.
        train, unseen: scenes without and with a combination that is held out of training; 0: 8000 and 600, of an atlas
            16000 and 800. Training composes others, of its own seed.
        about: metadata of a checkpoint: the sample shows what it was trained on, `things` of it if they are given, and
            what is held out is what its training left out.
        seed: of the sample. With another than the tokenizer's, no scene is one that a tokenizer was trained on.

    Raises:
        DataError: the folder holds neither.
    """
    if is_scene_folder(data) or is_atlas_folder(data):
        chosen = tuple(THINGS)[:things] if things else known_things(about or {})
        held_out = holds_styles_out((about or {}).get("training", {}))
        if not is_atlas_folder(data):
            sprites, portraits = Sprites.load(data), about is None  # no portrait is held out
            return scene_dataset(sprites, chosen, snap, train or 8000, unseen or 600, portraits, held_out, seed)
        atlas = AtlasSprites.load(data)
        known = None if about is None else known_entries(atlas, about)
        return atlas_dataset(atlas, chosen, snap, train or 16000, unseen or 800, known, held_out, seed)
    return Dataset.load(data)


def known_things(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The things of scenes in a checkpoint's vocabulary; COMMON for a checkpoint that names none."""
    vocabulary = set(about.get("vocabulary", ()))
    return tuple(thing for thing in THINGS if thing in vocabulary) or COMMON


def holds_styles_out(training: Mapping[str, Any]) -> bool:
    """False if one of the trainings that made a checkpoint, in its metadata, showed things in held-out styles.

    Args:
        training: about.training, with those before it, those of weights in a mean with it, and those carried over.
    """
    others = (
        training.get("carried"), training.get("mean_with"), training.get("started_from", {}).get("training"),
    )  # fmt: skip
    return training.get("styles_held_out") is not False and all(holds_styles_out(each) for each in others if each)


def known_entries(atlas: AtlasSprites, about: Mapping[str, Any]) -> list[Entry]:
    """The single things that a checkpoint was trained on, with their held-out styles; none without a breadth."""
    if not about.get("breadth") and not about.get("breadth_in_one_style"):
        return []
    return beside_scenes(atlas.entries, known_things(about), about.get("breadth_styles", ()))
