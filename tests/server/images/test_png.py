"""PNG files of our own writer: exact pixels, valid checksums, about as small as Pillow's."""

import io
import random

import pytest
from PIL import Image

from server.images.png import write_png


@pytest.mark.parametrize(("size", "channels"), [((1, 1), 3), ((5, 1), 4), ((1, 7), 3), ((61, 33), 4), ((64, 64), 3)])
def test_pixels_and_texts_come_back(size: tuple[int, int], channels: int) -> None:
    """A row above is missing for the first one, and differences wrap around at 256."""
    pixels = random.Random(1).randbytes(size[0] * size[1] * channels)
    data = write_png(pixels, size, channels, {"prompt": "ein süßer 🍎"})
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # the checksums of all chunks
    with Image.open(io.BytesIO(data)) as image:
        assert (image.mode, image.size, image.tobytes()) == ({3: "RGB", 4: "RGBA"}[channels], size, pixels)
        assert image.info["prompt"] == "ein süßer 🍎"


def test_a_smooth_image_is_about_as_small_as_pillows() -> None:
    smooth = Image.radial_gradient("L").convert("RGB")
    other = io.BytesIO()
    smooth.save(other, "PNG", compress_level=1)
    assert len(write_png(smooth.tobytes(), smooth.size, 3, {})) < 1.1 * len(other.getvalue())
