"""Files carry their own recipe."""

import io

import pytest
from PIL import Image

from server.images.codec import MIME, encode, read_metadata

RECIPE = {"prompt": "ein süßer Apfel 🍎", "seed": 2**63 - 1, "temperature": 0.9, "checkpoint_sha256": "ab" * 32}
PIXELS = bytes(range(256))[: 4 * 3 * 3] * 1


@pytest.mark.parametrize("format", MIME)
def test_the_recipe_comes_back_from_every_format(format: str) -> None:
    """An image whose seed is lost cannot be repeated; emoji and 63-bit seeds must survive too."""
    data = encode(PIXELS, (4, 3), format, 90, RECIPE)
    assert read_metadata(data) == RECIPE
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == (format.upper(), (4, 3))


def test_png_is_lossless_and_has_the_common_parameters_chunk() -> None:
    """Other tools read `parameters`; pixels must be the engine's."""
    data = encode(PIXELS, (4, 3), "png", 100, RECIPE)
    with Image.open(io.BytesIO(data)) as image:
        assert image.tobytes() == PIXELS
        assert image.info["parameters"].startswith("ein süßer Apfel 🍎\n")
        assert f"Seed: {2**63 - 1}" in image.info["parameters"]


def test_a_foreign_image_has_no_recipe() -> None:
    """An image from another program gives None, not an exception."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    assert read_metadata(buffer.getvalue()) is None


def test_wrong_number_of_pixels_is_an_error() -> None:
    """A truncated image must not be padded or published."""
    with pytest.raises(ValueError, match="36 bytes, got 35"):
        encode(PIXELS[:-1], (4, 3), "png", 100, {})
