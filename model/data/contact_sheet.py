"""Contact sheets: grids of images with captions, to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LABEL_PX = 11  # height of the caption line under an image


def contact_sheet(
    images: Sequence[np.ndarray], labels: Sequence[str] | None = None, columns: int = 8, scale: int = 1
) -> Image.Image:
    """Lay images out in a grid, captions underneath.

    Args:
        images: each (H, W, 3) uint8, all of the same size.
        labels: one caption per image; cut to the cell's width.
        scale: integer factor of enlargement, by nearest neighbour, so that pixels stay sharp.
    """
    height, width = images[0].shape[0] * scale, images[0].shape[1] * scale
    line = LABEL_PX + 2 if labels else 0
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + 4) + 4, rows * (height + line + 4) + 4), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LABEL_PX - 1)
    for index, image in enumerate(images):
        x = 4 + (index % columns) * (width + 4)
        y = 4 + (index // columns) * (height + line + 4)
        enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (x, y))
        if labels:
            draw.text((x, y + height), _cut(labels[index], width, font), fill="#444444", font=font)
    return sheet


def _cut(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The longest prefix of `text` that is at most `width` pixels wide."""
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
