"""Source images whose edited part is transparent: there is nothing old in it that new pixels could blend with."""

from PIL import Image, ImageChops

_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))


def scaled(image: Image.Image, hole: Image.Image, small_hole: Image.Image) -> Image.Image:
    """Scale an RGBA image to the size of `small_hole`, its mask at that size; `hole` is the one at its own size.

    A kept pixel gets the alpha of what is kept in its area: with what is erased beside it, it would be a seam.
    """
    result = image.resize(small_hole.size, Image.Resampling.LANCZOS)
    alpha = image.getchannel("A")
    weight = ImageChops.lighter(ImageChops.invert(hole), alpha)  # Pillow weighs L by A
    kept = Image.merge("LA", (alpha, weight)).resize(small_hole.size, Image.Resampling.LANCZOS).getchannel("L")
    result.putalpha(Image.composite(result.getchannel("A"), kept, small_hole))
    return result


def continued(image: Image.Image, hole: Image.Image, depth: int) -> Image.Image:
    """Lay the kept pixels at the hole's edge, continued `depth` pixels into it, under what is transparent there."""
    under = Image.composite(Image.new("RGBA", image.size), image, hole)
    known, reached = ImageChops.invert(hole), 0
    while reached < depth:
        step = min(max(1, reached // 4), depth - reached)  # one by one where it shows, then faster
        before, known_before = under.copy(), known
        for across, down in _SIDES:
            offset = (step * across, step * down)
            moved, at = Image.new("RGBA", image.size), Image.new("L", image.size)
            moved.paste(before, offset)
            at.paste(known_before, offset)
            under.paste(moved, mask=ImageChops.subtract(at, known))
            known = ImageChops.lighter(known, at)
        reached += step
    under.alpha_composite(image)
    return Image.composite(under, image, hole)
