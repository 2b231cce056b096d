"""The picture that an edit or a variation starts from: what stays of it, and how the new part goes into it."""

import hashlib
import zlib
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFilter

from server.jobs import JobInput
from server.model_info import ModelInfo

DRAWN, STAYS = 255, 0  #: of a mask's pixels


@dataclass(frozen=True, slots=True)
class Known:
    """A picture of which a part stays; the rest is decoded around it."""

    pixels: bytes  #: RGB, height * width * 3
    kept: bytes | int  #: one byte per token, 1 where it stays; or how many stay, those that the order decides first


@dataclass(frozen=True, slots=True)
class Source:
    """Pixels at the model's size. The mask says which are to be drawn; a variation has none."""

    size: tuple[int, int]  #: width, height
    pixels: bytes  #: RGB
    mask: bytes | None  #: one byte each, DRAWN or STAYS
    known: Known

    @classmethod
    def unpack(cls, data: bytes, job: JobInput, info: ModelInfo) -> "Source":
        """What `pack` made, for the engine.

        Raises:
            ValueError: it is not the picture of this job, or is damaged.
        """
        size = (job.width, job.height)
        area = job.width * job.height
        edit = job.edit
        if edit is None:
            raise ValueError("the job does not start from a picture")
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(data, 4 * area + 1)
        if hashlib.sha256(raw).hexdigest() != edit.sha256 or len(raw) not in (3 * area, 4 * area):
            raise ValueError("the picture to start from is damaged")
        pixels, mask = raw[: 3 * area], raw[3 * area :] or None
        if edit.kept_tokens is not None:
            return cls(size, pixels, mask, Known(pixels, edit.kept_tokens))
        if mask is None:
            raise ValueError("an edit needs a mask, and has none")
        return cls(size, pixels, mask, Known(pixels, staying(mask, size, info.tokens)))


def pack(pixels: bytes, mask: bytes | None) -> tuple[bytes, str]:
    """(what Redis keeps, SHA-256 of what is in it)"""
    raw = pixels + (mask or b"")
    return zlib.compress(raw, 1), hashlib.sha256(raw).hexdigest()


def staying(mask: bytes, size: tuple[int, int], tokens: int) -> bytes:
    """One byte per token, 1 where no pixel of its cell is to be drawn: a cell that is cut by the mask is new, and its
    old pixels come back with `blend`."""
    image = Image.frombytes("L", size, mask)
    grid = round(tokens**0.5)
    across, down = size[0] / grid, size[1] / grid
    cells = [
        image.crop((round(x * across), round(y * down), round((x + 1) * across), round((y + 1) * down)))
        for y in range(grid)
        for x in range(grid)
    ]
    return bytes(cell.getbbox() is None for cell in cells)


def blend(drawn: bytes, source: Source, feather: int) -> bytes:
    """The new pixels inside the mask, the old ones outside it unchanged, and `feather` pixels of transition inside."""
    if source.mask is None:
        return drawn
    old, new = (Image.frombytes("RGB", source.size, pixels) for pixels in (source.pixels, drawn))
    mask = Image.frombytes("L", source.size, source.mask)
    return Image.composite(new, old, ramp(mask, feather)).tobytes()


def ramp(mask: Image.Image, feather: int) -> Image.Image:
    """The mask with a soft rim: a pixel at depth d (1 is the outermost inside) has the share d / (feather + 1).

    Eroded copies lie inside each other, so the lightest one that covers a pixel tells its depth. The picture's own
    border is no rim: the filter continues the mask beyond it.
    """
    result = Image.new("L", mask.size, STAYS)
    for depth in range(1, feather + 2):
        share = round(DRAWN * depth / (feather + 1))
        result = ImageChops.lighter(result, mask.point([0] * 255 + [share]))
        mask = mask.filter(ImageFilter.MinFilter(3))
    return result
