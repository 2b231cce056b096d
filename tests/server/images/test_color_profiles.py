"""Uploaded images come out in sRGB, whatever their color profile."""

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageCms

from server.images import uploads
from tests.server.images.test_uploads import chunk

SIZE = (32, 32)
#: Colorants of Display P3, adapted to D50, and the tone curve of sRGB.
P3 = {"rXYZ": (0.51512, 0.2412, -0.00105), "gXYZ": (0.29198, 0.69225, 0.04189), "bXYZ": (0.1571, 0.06657, 0.78407)}
CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def p3_profile() -> bytes:
    """A minimal ICC profile of Display P3, version 4."""
    text = "Display P3".encode("utf-16-be")
    curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _fixed(*CURVE)
    tags = {name: b"XYZ " + bytes(4) + _fixed(*value) for name, value in P3.items()}
    tags |= {"wtpt": b"XYZ " + bytes(4) + _fixed(0.9642, 1.0, 0.8249), "rTRC": curve, "gTRC": curve, "bTRC": curve}
    described = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags |= {"desc": described, "cprt": described}
    table, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name.encode() + struct.pack(">II", offset + len(data), len(value))
        data += value
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"lcms", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + body


def read(image: Image.Image, format: str = "PNG", **options: Any) -> tuple[Image.Image, list[str]]:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    pixels, _, notes = uploads.read_with_recipe(io.BytesIO(buffer.getvalue()), SIZE)
    return Image.frombytes("RGB", SIZE, pixels), notes


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_display_p3_becomes_srgb(format: str) -> None:
    """The profile was ignored and dropped, so colors of phone photos came back paler."""
    options = {"lossless": True} if format == "WEBP" else {}
    image, notes = read(Image.new("RGB", SIZE, (60, 180, 60)), format, icc_profile=p3_profile(), **options)
    assert image.getpixel((0, 0)) == pytest.approx((0, 183, 30), abs=2)
    assert notes == ["'image' was converted from its color profile 'Display P3' to sRGB."]


def test_conversion_equals_littlecms_and_keeps_alpha() -> None:
    original = Image.merge("RGB", [Image.linear_gradient("L").resize(SIZE).rotate(90 * i) for i in range(3)])
    profile = ImageCms.getOpenProfile(io.BytesIO(p3_profile()))
    expected = ImageCms.profileToProfile(original, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert expected is not None
    assert read(original, icc_profile=p3_profile())[0].tobytes() == expected.tobytes()
    buffer = io.BytesIO()
    original.putalpha(Image.linear_gradient("L").resize(SIZE))
    original.save(buffer, "PNG", icc_profile=p3_profile())
    found = uploads.decode(io.BytesIO(buffer.getvalue()), "image").image
    assert found.getchannel("A").tobytes() == original.getchannel("A").tobytes()


def test_an_srgb_profile_changes_no_pixel() -> None:
    """Pixels outside the mask of an edit come back unchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.merge("RGB", [Image.linear_gradient("L").resize(SIZE).rotate(90 * i) for i in range(3)])
    found, notes = read(image, icc_profile=profile)
    assert (found.tobytes(), notes) == (image.tobytes(), [])


@pytest.mark.parametrize("profile", [b"x", b"\0" * 200, p3_profile()[:200]])
def test_a_damaged_profile_is_told(profile: bytes) -> None:
    image, notes = read(Image.new("RGB", SIZE, (60, 180, 60)), icc_profile=profile)
    assert image.getpixel((0, 0)) == (60, 180, 60)
    assert "taken as sRGB" in notes[0]


def test_a_profile_of_another_color_space_is_told() -> None:
    assert "taken as sRGB" in read(Image.new("L", SIZE, 90), icc_profile=p3_profile())[1][0]


def test_sixteen_bits_are_told() -> None:
    """Pillow reads 16-bit RGB as 8 bits without a word."""
    rows = b"".join(b"\0" + b"\x80\x40" * 3 * SIZE[0] for _ in range(SIZE[1]))
    header = struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    pixels, _, notes = uploads.read_with_recipe(io.BytesIO(b"\x89PNG\r\n\x1a\n" + data), SIZE)
    assert (pixels[:3], notes) == (b"\x80" * 3, ["'image' has 16 bits per channel; they were reduced to 8."])
