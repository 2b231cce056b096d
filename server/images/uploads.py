"""Uploaded pictures: read with limits on bytes and pixels, so that no file fills the memory, and brought to size."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from PIL import Image, ImageOps

from server.errors import BodyTooLarge, InvalidRequest
from server.images.codec import recipe_in
from server.images.compositing import DRAWN, STAYS

MAX_IMAGE_BYTES = 8 << 20
MAX_PIXELS = 2048 * 2048  # 16 MiB when decoded
FORMATS = ("PNG", "WEBP", "JPEG")
#: 8 bits a channel. Pillow would clip the 16 and 32 bits of the others.
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_OPAQUE = 128  # alpha from here on counts as opaque: what programs leave of soft brushes
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UploadedImage:
    """A decoded upload."""

    image: Image.Image  #: RGBA
    recipe: dict[str, Any] | None  #: what it was drawn from, if it was drawn here


def with_mask(image: BinaryIO | None, mask: BinaryIO | None, size: tuple[int, int]) -> tuple[bytes, bytes, list[str]]:
    """(RGB, mask, warnings) at the model's size; see `decode`, `scaled` and `mask_of` for what is refused."""
    whole = decode(image, "image")
    pixels, notes = scaled(whole.image, size)
    return pixels, mask_of(whole.image, None if mask is None else decode(mask, "mask").image, size), notes


def with_recipe(image: BinaryIO | None, size: tuple[int, int]) -> tuple[bytes, dict[str, Any] | None, list[str]]:
    """(RGB at the model's size, the recipe of a picture that was drawn here, warnings)"""
    whole = decode(image, "image")
    pixels, notes = scaled(whole.image, size)
    return pixels, whole.recipe, notes


def decode(file: BinaryIO | None, param: str) -> UploadedImage:
    """Check before decoding, then decode. `param` is the field's name, for messages.

    Raises:
        InvalidRequest, BodyTooLarge: it cannot be used; the message names the limit.
    """
    if file is None:
        raise InvalidRequest(f"Missing required file: '{param}'.", param=param)
    data = file.read(MAX_IMAGE_BYTES + 1)
    if not data:
        raise InvalidRequest(f"'{param}' is an empty file.", param=param)
    if len(data) > MAX_IMAGE_BYTES:
        raise BodyTooLarge(f"'{param}' has more than {MAX_IMAGE_BYTES} bytes; scale the picture down.", param=param)
    image = _guarded(lambda: Image.open(io.BytesIO(data), formats=FORMATS), param)
    with image:
        _check(image, param)
        recipe = _recipe(image)
        rgba = _guarded(lambda: ImageOps.exif_transpose(image).convert("RGBA"), param)
    return UploadedImage(rgba, recipe)


def _check(image: Image.Image, param: str) -> None:
    """By the header alone; nothing is decoded yet."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"'{param}' has {width}x{height} pixels; at most {MAX_PIXELS} in all (2048x2048) are taken. Scale it down.",
            param=param,
        )
    frames = _guarded(lambda: getattr(image, "n_frames", 1), param)
    if frames > 1 and image.format != "MPO":  # cameras put a preview behind the picture
        raise InvalidRequest(f"'{param}' is animated ({frames} frames); send a single picture.", param=param)
    if image.mode not in _MODES:
        raise InvalidRequest(
            f"'{param}' has pixels of kind {image.mode}; send 8 bits per channel, as grey, palette, RGB or RGBA.",
            param=param,
        )


def _guarded(read: Callable[[], T], param: str) -> T:
    """Pillow says of broken files what its decoders happened to trip over: many kinds of exception, one cause."""
    try:
        return read()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(
            f"'{param}' has far more than {MAX_PIXELS} pixels (2048x2048). Scale it down.", param=param
        ) from error
    except Image.UnidentifiedImageError as error:
        raise InvalidRequest(f"'{param}' is not a whole PNG, WebP or JPEG file.", param=param) from error
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidRequest(f"'{param}' is damaged: {error}. Save it again.", param=param) from error


def _recipe(image: Image.Image) -> dict[str, Any] | None:
    """Whatever lies in a stranger's file in the place of ours is no reason to refuse his picture."""
    try:
        return recipe_in(image)
    except Exception:
        return None


def scaled(picture: Image.Image, size: tuple[int, int]) -> tuple[bytes, list[str]]:
    """(RGB at the model's size on white, warnings)

    Raises:
        InvalidRequest: it has another shape; cutting and stretching are the caller's business.
    """
    width, height = picture.size
    if width * size[1] != height * size[0]:
        raise InvalidRequest(
            f"'image' has {width}x{height} pixels; this model draws {size[0]}x{size[1]}, and only pictures of the "
            "same shape are scaled. Crop or pad it.",
            param="image",
        )
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    rgb = page.convert("RGB")
    if picture.size == size:
        return rgb.tobytes(), []
    note = f"'image' was scaled from {width}x{height} to {size[0]}x{size[1]}, the size that this model draws."
    return rgb.resize(size, Image.Resampling.LANCZOS).tobytes(), [note]


def mask_of(image: Image.Image, mask: Image.Image | None, size: tuple[int, int]) -> bytes:
    """One byte per pixel at the model's size. What is transparent in the mask, or without one in the image, is drawn.

    Raises:
        InvalidRequest: there is no such part, or it is not a mask of this image.
    """
    source = mask or image
    if source.size != image.size:
        (width, height), wanted = source.size, image.size
        raise InvalidRequest(
            f"'mask' has {width}x{height} pixels; it must have the {wanted[0]}x{wanted[1]} of 'image'.", param="mask"
        )
    alpha = source.getchannel("A")
    drawn = alpha.point([DRAWN] * _OPAQUE + [STAYS] * (256 - _OPAQUE))
    if drawn.size != size:  # at least half of what a pixel covers
        small = drawn.resize(size, Image.Resampling.BOX)
        drawn = small.point([STAYS] * 128 + [DRAWN] * 128)
    if drawn.getbbox() is None:
        where = "'mask' is nowhere transparent" if mask else "'mask' is missing, and 'image' is nowhere transparent"
        raise InvalidRequest(f"{where}; what is transparent (alpha below {_OPAQUE}) is drawn anew.", param="mask")
    return drawn.tobytes()
