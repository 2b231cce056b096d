"""The source image of an edit or a variation: the part that is kept, and blending the new part into it."""

import hashlib
import zlib
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFilter

from server.jobs import JobInput
from server.model_info import ModelInfo

GENERATED, KEPT = 255, 0  #: values of a mask's pixels


@dataclass(frozen=True, slots=True)
class KnownPixels:
    """An image of which a part is kept; the rest is decoded around it."""

    pixels: bytes  #: RGB, height * width * 3, or RGBA of a transparent job
    kept: bytes | int  #: one byte per token, 1 if it is kept; or a number of tokens, those that the order decides first


@dataclass(frozen=True, slots=True)
class Source:
    """Pixels at the model's size, and the mask of those to generate; a variation has none."""

    size: tuple[int, int]  #: width, height
    pixels: bytes  #: RGB or RGBA
    mask: bytes | None  #: one byte per pixel, GENERATED or KEPT
    known: KnownPixels

    @classmethod
    def unpack(cls, data: bytes, job: JobInput, info: ModelInfo) -> "Source":
        """Decode what `pack` produced.

        Raises:
            ValueError: the data is damaged, or not the source image of this job.
        """
        size = (job.width, job.height)
        area = job.width * job.height
        image_bytes = job.channels * area
        edit = job.edit
        if edit is None:
            raise ValueError("the job has no source image")
        unpacker = zlib.decompressobj()
        try:
            raw = unpacker.decompress(data, image_bytes + area + 1)
        except zlib.error as error:
            raise ValueError("the source image is damaged") from error
        if hashlib.sha256(raw).hexdigest() != edit.sha256 or len(raw) not in (image_bytes, image_bytes + area):
            raise ValueError("the source image is damaged")
        pixels, mask = raw[:image_bytes], raw[image_bytes:] or None
        if edit.kept_tokens is not None:
            return cls(size, pixels, mask, KnownPixels(pixels, edit.kept_tokens))
        if mask is None:
            raise ValueError("an edit needs a mask, and has none")
        return cls(size, pixels, mask, KnownPixels(pixels, kept_cells(mask, size, info.tokens)))


def pack(pixels: bytes, mask: bytes | None) -> tuple[bytes, str]:
    """Compress a source image for Redis; returns (compressed data, SHA-256 of the uncompressed data)."""
    raw = pixels + (mask or b"")
    return zlib.compress(raw, 1), hashlib.sha256(raw).hexdigest()


def kept_cells(mask: bytes, size: tuple[int, int], tokens: int) -> bytes:
    """One byte per token, 1 where no pixel of its cell is masked. A cell that the mask cuts is generated whole, and
    `blend` restores its old pixels."""
    image = Image.frombytes("L", size, mask)
    grid = round(tokens**0.5)
    across, down = size[0] / grid, size[1] / grid
    cells = [
        image.crop((round(x * across), round(y * down), round((x + 1) * across), round((y + 1) * down)))
        for y in range(grid)
        for x in range(grid)
    ]
    return bytes(cell.getbbox() is None for cell in cells)


def blend(generated: bytes, source: Source, feather: int) -> bytes:
    """New pixels inside the mask, old ones unchanged outside it, and a transition of `feather` pixels inside."""
    if source.mask is None:
        return generated
    mode = "RGB" if len(generated) == 3 * source.size[0] * source.size[1] else "RGBA"
    old, new = (Image.frombytes(mode, source.size, pixels) for pixels in (source.pixels, generated))
    share = feathered(Image.frombytes("L", source.size, source.mask), feather)
    mixed = Image.composite(new, old, share)
    if mode == "RGBA":
        # Colours count by their alpha: an invisible pixel would lend its colour, often black, to the transition.
        weighed = Image.composite(new.convert("RGBa"), old.convert("RGBa"), share).convert("RGBA")
        between = share.point([0, *[255] * 254, 0])  # all others are exactly new or old ones already
        seen = mixed.getchannel("A").point([0, *[255] * 255])
        mixed.paste(weighed, mask=ImageChops.darker(between, seen))
    return mixed.tobytes()


def feathered(mask: Image.Image, feather: int) -> Image.Image:
    """The mask with a soft edge: a pixel at depth d (1 is the outermost inside) has the share d / (feather + 1).

    Eroded copies are nested, so the lightest one that covers a pixel gives its depth. The image's own border is not
    an edge: the filter continues the mask beyond it.
    """
    result = Image.new("L", mask.size, KEPT)
    for depth in range(1, feather + 2):
        share = round(GENERATED * depth / (feather + 1))
        result = ImageChops.lighter(result, mask.point([0] * 255 + [share]))
        mask = mask.filter(ImageFilter.MinFilter(3))
    return result
