"""A data folder of any kind as a `Dataset`: packed images as they are, sprites as a fixed sample of scenes."""

from __future__ import annotations

from pathlib import Path

from model.data.atlas.atlas_dataset import atlas_dataset
from model.data.atlas.store import AtlasSprites, is_atlas_folder
from model.data.dataset import Dataset
from model.data.scenes.dataset import is_scene_folder, scene_dataset
from model.data.scenes.sprites import Sprites


def load_images(data: Path, things: int, snap: int, train: int = 0, unseen: int = 0) -> Dataset:
    """The packed data set in `data`, or a sample of scenes (and of the breadth) if the folder holds sprites.

    Args:
        things, snap: of scenes: the first things that may appear, and the raster of their corners, pixels.
        train, unseen: scenes without and with a combination that is held out of training; 0: 8000 and 600, of an atlas
            16000 and 800. Training composes others, of its own seed.

    Raises:
        DataError: the folder holds neither.
    """
    if is_atlas_folder(data):
        return atlas_dataset(AtlasSprites.load(data), things, snap, train=train or 16000, unseen=unseen or 800)
    if is_scene_folder(data):
        return scene_dataset(Sprites.load(data), things, snap, train=train or 8000, unseen=unseen or 600)
    return Dataset.load(data)
