"""The blend of an edit where source or result are transparent."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

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
