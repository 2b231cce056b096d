"""Uploaded images are rejected with the parameter and the limit, or used as intended; never a 5xx."""

import io
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageFile

from server.errors import BodyTooLarge, InvalidRequest, RequestError
from server.images import compositing, uploads
from server.images.compositing import GENERATED
from tests.server.harness import Service

SIZE = (32, 32)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise() -> Image.Image:
    """An image that hardly compresses, so that damage hits pixels and not only headers."""
    return Image.frombytes("RGB", SIZE, random.Random(0).randbytes(SIZE[0] * SIZE[1] * 3))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG with a huge declared size; its rows are zeros, which compress a thousandfold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG with 32 MiB of compressed text in a few KiB."""
    plain = saved(Image.new("RGB", SIZE))
    text = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(32 << 20), 9))
    return plain[:33] + text + plain[33:]


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", SIZE, color) for color in ("red", "green", "blue")]
    return saved(frames[0], format, save_all=True, append_images=frames[1:], duration=100)


GOOD = saved(noise())
HOLE = Image.new("RGBA", SIZE, (0, 0, 0, 0))


def many_scans() -> bytes:
    """A progressive JPEG whose last scan, 16 bytes long, comes 300 times more."""
    data = saved(Image.new("L", (64, 64), 128), "JPEG", progressive=True, quality=80)
    return data[:-2] + bytes.fromhex("ffda0008010100013f217ffeff00fe7f") * 300 + data[-2:]


REJECTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"hello", "not a complete PNG, WebP or JPEG"),
    "truncated": (lambda: GOOD[: len(GOOD) // 2], "damaged"),
    "header alone": (lambda: GOOD[:33], "not a complete PNG"),
    "many pixels": (lambda: bomb(2049, 2048), r"2049x2048 pixels; at most 4194304"),
    "bomb": (lambda: bomb(60_000, 60_000), "4194304 pixels"),
    "text bomb": (text_bomb, "damaged"),
    "many scans": (many_scans, "a JPEG of more than 200 scans; save it again"),
    "many bytes": (lambda: GOOD + bytes(uploads.MAX_IMAGE_BYTES), "more than 8388608 bytes"),
    "animated PNG": (lambda: animated("PNG"), r"animated \(3 frames\)"),
    "animated WebP": (lambda: animated("WEBP"), r"animated \(3 frames\)"),
    "GIF": (lambda: saved(Image.new("RGB", SIZE), "GIF"), "not a complete PNG, WebP or JPEG"),
    "16-bit grey": (lambda: saved(Image.new("I;16", SIZE)), "8 bits per channel"),
}


@pytest.mark.parametrize("name", REJECTED)
@pytest.mark.parametrize("param", ["image", "mask"])
def test_an_unusable_file_is_rejected_with_its_parameter(name: str, param: str) -> None:
    make, message = REJECTED[name]
    with pytest.raises(RequestError, match=message) as caught:
        uploads.decode(io.BytesIO(make()), param)
    assert isinstance(caught.value, (InvalidRequest, BodyTooLarge))
    assert caught.value.param == param
    assert f"'{param}'" in caught.value.message


@pytest.mark.parametrize("name", ["bomb", "many pixels", "many scans"])
def test_nothing_is_decoded_before_the_checks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels would be 14 GiB and 16 MiB; 20 KB of scans took half a second, 8 MiB would take twenty minutes."""

    def decoded(_: ImageFile.ImageFile) -> None:
        pytest.fail("decoded before the check")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    with pytest.raises(RequestError):
        uploads.decode(io.BytesIO(REJECTED[name][0]()), "image")


def test_a_text_bomb_does_not_fill_the_memory() -> None:
    data = text_bomb()
    tracemalloc.start()
    try:
        with pytest.raises(RequestError):
            uploads.decode(io.BytesIO(data), "image")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_common_pixel_mode_is_read(mode: str) -> None:
    """Palette, grey and CMYK images are images as well."""
    image = Image.new("RGBA", SIZE, (200, 0, 0, 255)).convert("RGB" if mode in ("CMYK", "1", "P") else mode)
    format = "JPEG" if mode == "CMYK" else "PNG"
    found = uploads.decode(io.BytesIO(saved(image.convert(mode), format)), "image")
    assert (found.image.mode, found.image.size, found.recipe) == ("RGBA", SIZE, None)


def test_a_transparent_palette_colour_is_a_mask() -> None:
    """Old tools export this way; the palette's transparency must survive decoding."""
    image = Image.new("P", SIZE, 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (0, 0, 16, 32))
    decoded = uploads.decode(io.BytesIO(saved(image, transparency=1)), "mask").image
    mask = uploads.edit_mask(decoded, None, SIZE)[1].tobytes()
    assert [mask[x] for x in (0, 15, 16, 31)] == [GENERATED, GENERATED, 0, 0]


def test_a_photo_is_rotated_as_its_exif_says() -> None:
    """A portrait photo is stored in landscape; decoded without its EXIF the mask would not fit."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    assert uploads.decode(io.BytesIO(data), "image").image.size == (20, 40)


def test_a_mask_of_another_size_without_alpha_or_without_a_hole_is_rejected() -> None:
    def ask(mask: Image.Image | None, image: Image.Image | None = None) -> None:
        first = io.BytesIO(saved(image or Image.new("RGB", SIZE)))
        uploads.read_with_mask(first, None if mask is None else io.BytesIO(saved(mask)), SIZE)

    for mask, message in (
        (Image.new("RGBA", (16, 16)), "'mask' has 16x16 pixels; it must have the 32x32 of 'image'"),
        (Image.new("RGB", SIZE), "'mask' has no transparency"),
        (Image.new("RGBA", SIZE, (0, 0, 0, 255)), "'mask' has no transparency"),
    ):
        with pytest.raises(InvalidRequest, match=message) as caught:
            ask(mask)
        assert caught.value.param == "mask"
    with pytest.raises(InvalidRequest, match="same shape") as wide:
        ask(Image.new("RGBA", (64, 32)), Image.new("RGB", (64, 32)))
    assert wide.value.param == "image"


def test_an_edit_without_a_mask_regenerates_the_whole_image() -> None:
    """It was a 400; OpenAI redraws the whole image, and Open WebUI sends no mask."""
    _, mask, notes = uploads.read_with_mask(io.BytesIO(GOOD), None, SIZE)
    assert mask == bytes([GENERATED]) * (SIZE[0] * SIZE[1])
    assert "the whole image was generated again" in notes[0]


def test_kept_transparency_becomes_white_with_a_warning() -> None:
    """It was flattened silently, though the documentation calls pixels outside the mask unchanged."""
    shape = Image.new("RGBA", SIZE, (200, 30, 10, 255))
    shape.paste((0, 0, 0, 0), (0, 0, 8, 8))
    hole = Image.new("RGBA", SIZE, "black")
    hole.paste((0, 0, 0, 0), (16, 0, 32, 32))

    def notes(image: Image.Image, mask: Image.Image | None, *, alpha: bool = False) -> list[str]:
        files = (io.BytesIO(saved(each)) if each else None for each in (image, mask))
        return uploads.read_with_mask(*files, SIZE, alpha=alpha)[2]

    [warning] = notes(shape, hole)
    assert "'image' is transparent in what is kept" in warning and "'background' to transparent" in warning
    assert notes(shape, hole, alpha=True) == notes(shape, None) == notes(shape.convert("RGB"), hole) == []
    [varied] = uploads.read_with_recipe(io.BytesIO(saved(shape)), SIZE)[2]
    assert varied.startswith("'image' is transparent in what is kept of it, which was put on white.")


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from(["PNG", "WEBP", "JPEG"]),
    cuts=st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=8)), max_size=6),
    keep=st.integers(0, 5000),
)
def test_any_damaged_file_is_an_image_or_a_4xx(base: str, cuts: list[tuple[int, bytes]], keep: int) -> None:
    """Decoders fail on broken files in many ways; the caller gets one error, and the gateway survives."""
    data = bytearray(saved(noise(), base))
    for at, bytes_ in cuts:
        data[at % len(data) : at % len(data) + len(bytes_)] = bytes_
    try:
        found = uploads.decode(io.BytesIO(bytes(data[:keep])), "image")
    except RequestError as error:
        assert 400 <= error.status < 500
        assert error.param == "image"
    else:
        assert found.image.mode == "RGBA"


# --- the blend ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    box=st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 32), st.integers(1, 32)),
    feather=st.integers(0, 9),
)
def test_outside_the_mask_nothing_changes(box: tuple[int, int, int, int], feather: int) -> None:
    """Bit-exact, for any mask and feather."""
    left, upper = box[:2]
    mask = Image.new("L", SIZE, 0)
    mask.paste(GENERATED, (left, upper, min(left + box[2], 32), min(upper + box[3], 32)))
    old, new = (Image.new("RGB", SIZE, color) for color in ((10, 20, 30), (250, 240, 230)))
    source = compositing.Source(SIZE, old.tobytes(), mask.tobytes(), compositing.KnownPixels(old.tobytes(), 0))
    result = Image.frombytes("RGB", SIZE, compositing.blend(new.tobytes(), source, feather))
    outside = ImageChops.invert(mask)
    assert not ImageChops.multiply(ImageChops.difference(result, old), outside.convert("RGB")).getbbox()
    if feather == 0:
        inside = ImageChops.multiply(ImageChops.difference(result, new), mask.convert("RGB"))
        assert not inside.getbbox()


def test_the_ramp_is_even_and_the_border_is_not_an_edge() -> None:
    """A mask that ends at the image's border has no seam there."""
    mask = Image.new("L", SIZE, 0)
    mask.paste(GENERATED, (16, 0, 32, 32))
    ramp = compositing.feathered(mask, 3)
    assert [ramp.getpixel((x, 0)) for x in (15, 16, 17, 18, 19, 31)] == [0, 64, 128, 191, 255, 255]


# --- the same over HTTP -------------------------------------------------------------------------------------


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.settings.base_url) as made:
        yield made


FIELDS: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({"prompt": "x"}, {"mask": GOOD}, "image"),
    ({}, {"image": GOOD, "mask": saved(HOLE)}, "prompt"),
    ({"prompt": "x", "n": "eleven"}, {"image": GOOD}, "n"),
    ({"prompt": "x", "feather": "65"}, {"image": GOOD}, "feather"),
    ({"prompt": "x", "fether": "1"}, {"image": GOOD}, "fether"),
    ({"prompt": "x", "partial_images": "2"}, {"image": GOOD, "mask": saved(HOLE)}, "partial_images"),
    ({"prompt": "x", "webhook": "https://example.com"}, {"image": GOOD}, "webhook"),
    # The last value used to win silently.
    ({"prompt": ["x", "y"]}, {"image": GOOD, "mask": saved(HOLE)}, "prompt"),
    ({"prompt": "x", "size": "64x64"}, {"image": GOOD, "mask": saved(HOLE)}, "size"),
    ({"prompt": "x", "model": "dall-e-2"}, {"image": GOOD, "mask": saved(HOLE)}, "model"),
    ({"prompt": "x", "guidance_interval": ["0.8", "0.2"]}, {"image": GOOD}, "guidance_interval"),
    ({"prompt": "x", "image": "a path"}, {"mask": GOOD}, "image"),
    ({"prompt": "x"}, {"image": GOOD, "prompt": b"a file"}, "prompt"),
    ({"prompt": "x"}, {"image": bomb(60_000, 60_000), "mask": saved(HOLE)}, "image"),
    ({"prompt": "x"}, {"image": GOOD, "mask": animated("PNG")}, "mask"),
]


@pytest.mark.parametrize(("data", "files", "param"), FIELDS)
def test_a_wrong_form_names_its_field(http: httpx.Client, data: dict[str, Any], files: Any, param: str | None) -> None:
    files = {name: (name, content) for name, content in files.items()}
    answer = http.post("/v1/images/edits", data=data, files=files)
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    assert answer.json()["error"]["param"] == param, answer.text


def test_a_body_that_is_not_a_form_two_images_and_too_many_bytes(http: httpx.Client) -> None:
    assert http.post("/v1/images/edits", json={"prompt": "x"}).status_code == 400
    broken = http.post("/v1/images/edits", content=b"--x\r\n", headers={"Content-Type": "multipart/form-data"})
    assert broken.status_code == 400
    two = [("image[]", ("a", GOOD)), ("image[]", ("b", GOOD))]
    answer = http.post("/v1/images/edits", data={"prompt": "x"}, files=two)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
    large = GOOD + bytes(uploads.MAX_IMAGE_BYTES)
    answer = http.post("/v1/images/edits", data={"prompt": "x"}, files={"image": large})
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "image")
    answer = http.post("/v1/images/edits", data={"prompt": "x"}, files={"image": large, "mask": large + large})
    assert answer.status_code == 413
