"""The blend of an edit where source or result are transparent."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.images import uploads
from server.images.compositing import GENERATED, KnownPixels, Source, blend, feathered

SIDE = 8
SIZE = (SIDE, SIDE)
EDGE = 3  # first column inside the mask


def source(colour: tuple[int, ...]) -> Source:
    mask = Image.new("L", SIZE, 0)
    mask.paste(GENERATED, (EDGE, 0, SIDE, SIDE))
    pixels = bytes(colour) * SIDE * SIDE
    return Source(SIZE, pixels, mask.tobytes(), KnownPixels(pixels, 0))


def row(old: tuple[int, ...], new: tuple[int, ...], feather: int = 2) -> list[tuple[int, ...]]:
    blended = blend(bytes(new) * SIDE * SIDE, source(old), feather)
    return [tuple(blended[len(old) * x : len(old) * (x + 1)]) for x in range(SIDE)]


@pytest.mark.parametrize("hidden", [(0, 0, 0, 0), (255, 255, 255, 0), (9, 200, 30, 0)])
def test_an_invisible_pixel_lends_the_feather_no_colour(hidden: tuple[int, ...]) -> None:
    """Colours were mixed without regard to alpha: the feather between nothing and red was a dark or white fringe."""
    red = (255, 0, 0, 255)
    assert row(hidden, red)[EDGE - 1 : EDGE + 3] == [hidden, (255, 0, 0, 85), (255, 0, 0, 170), red]
    assert row(red, hidden)[EDGE - 1 : EDGE + 3] == [red, (255, 0, 0, 170), (255, 0, 0, 85), hidden]


pixel = st.tuples(*[st.integers(0, 255)] * 4)


@settings(max_examples=100, deadline=None)
@given(old=pixel, new=pixel, feather=st.integers(0, 5))
def test_a_transparent_blend_is_exact_outside_the_feather(
    old: tuple[int, ...], new: tuple[int, ...], feather: int
) -> None:
    """Weighing colours by alpha rounds them; pixels that are wholly old or wholly new may not change for it, and alpha
    goes evenly from one to the other."""
    pixels, inside = row(old, new, feather), SIDE - EDGE
    assert pixels[:EDGE] == [old] * EDGE
    assert pixels[EDGE + feather :] == [new] * max(0, inside - feather)
    ramp = feathered(Image.frombytes("L", SIZE, source(old).mask or b""), feather)
    for x in range(SIDE):
        share = int(ramp.getpixel((x, 0)) or 0) / GENERATED  # type: ignore[arg-type]
        assert abs(pixels[x][3] - (old[3] + (new[3] - old[3]) * share)) <= 1


def png(image: Image.Image) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return io.BytesIO(buffer.getvalue())


@pytest.mark.parametrize("feather", [0, 2, 8])
@pytest.mark.parametrize("side", [32, 50, 96])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_an_edit_has_no_seam_where_its_source_was_erased(alpha: bool, separate: bool, side: int, feather: int) -> None:
    """The feather mixed new pixels with the erased ones under them: a white rim around the new part, or, with a
    transparent background, a ring that one could see through. Scaling mixed the kept pixels with them, too."""
    size, edge = (32, 32), side // 2 - 3
    image, mask = Image.new("RGBA", (side, side), (200, 30, 10, 255)), Image.new("RGBA", (side, side), "black")
    for each in (image, mask):
        each.paste((0, 0, 0, 0), (edge, edge, side, side))
    pixels, hole, _ = uploads.read_with_mask(
        png(image), png(mask) if separate else None, size, alpha=alpha, feather=feather
    )
    mode, channels = ("RGBA", 4) if alpha else ("RGB", 3)
    source, new = Source(size, pixels, hole, KnownPixels(pixels, 0)), (10, 30, 200, 255)[:channels]
    result = Image.frombytes(mode, size, blend(bytes(new) * 32 * 32, source, feather))
    assert result.getpixel((0, 0)) == (200, 30, 10, 255)[:channels]
    assert result.getpixel((31, 31)) == new
    for low, high in result.getextrema()[1:2]:  # type: ignore[misc]
        assert (low, high) == pytest.approx((30, 30), abs=1), "green is the same in old and new, and more in white"
    if alpha:
        assert result.getextrema()[3] == (255, 255)


def test_nothing_is_continued_beyond_the_feather_or_outside_the_mask() -> None:
    """Kept pixels stay as they were, half transparent ones included; what is beyond the feather stays empty."""
    image = Image.new("RGBA", (32, 32), (200, 30, 10, 130))
    image.paste((9, 9, 9, 0), (10, 0, 32, 32))
    pixels, _, _ = uploads.read_with_mask(png(image), None, (32, 32), alpha=True, feather=3)
    row = [tuple(pixels[4 * x : 4 * x + 4]) for x in range(32)]
    assert row[:13] == [(200, 30, 10, 130)] * 13
    assert {each[3] for each in row[13:]} == {0}
