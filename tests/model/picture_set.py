"""A small data set with behaviour: coloured squares whose captions are true, at the tiny preset's 16 pixels."""

from __future__ import annotations

import itertools

import numpy as np

from model.data.dataset import Dataset, Item

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "black": (10, 10, 10)}
PLACES = {"left": slice(1, 8), "right": slice(8, 15)}


def squares() -> Dataset:
    """Eight pictures: four colours, left and right."""
    images, items = [], []
    for (colour, rgb), (place, columns) in itertools.product(COLOURS.items(), PLACES.items()):
        image = np.full((16, 16, 3), 255, np.uint8)
        image[4:12, columns] = rgb
        images.append(image)
        caption = f"{colour} square {place}"
        items.append(Item(f"{colour} {place}", "plain", (caption, f"a {caption}", caption, caption), "train"))
    return Dataset(np.stack(images), items, {"name": "squares"})
