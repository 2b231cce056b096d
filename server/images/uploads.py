"""Reads uploaded images and fits them to the model; limits on bytes and pixels bound the memory of any file."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from PIL import Image, ImageChops, ImageOps

from server.errors import BodyTooLarge, InvalidRequest
from server.images import erased
from server.images.codec import recipe_in
from server.images.color_profiles import to_srgb
from server.images.compositing import GENERATED, KEPT

MAX_IMAGE_BYTES = 8 << 20
MAX_PIXELS = 2048 * 2048  # 16 MiB when decoded
MAX_SCANS = 200  # encoders write about ten, and metadata may look like a few
FORMATS = ("PNG", "WEBP", "JPEG")
#: Modes with 8 bits per channel. Pillow would clip the 16 and 32 bits of the others.
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_PNG_DEPTH = 24  # offset of the bit depth in a PNG, whose first chunk is always IHDR
_OPAQUE = 128  # alpha from here on counts as opaque; soft brushes leave values in between
#: Warning about pixels of the image that come back, but opaque.
WHITENED = (
    "'image' is transparent in what is kept of it, which was put on white. To keep that, set 'background' to "
    "transparent, with a model whose 'transparent' is true in GET /v1/models."
)
Recipe = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UploadedImage:
    """A decoded upload."""

    image: Image.Image  #: RGBA
    recipe: Recipe | None  #: its parameters, if it was generated here
    notes: list[str]  #: warnings about colors that were converted


def read_with_mask(
    image: BinaryIO | None, mask: BinaryIO | None, size: tuple[int, int], *, alpha: bool = False, feather: int = 0
) -> tuple[bytes, bytes, list[str]]:
    """Read an edit's files as (RGB, with `alpha` RGBA; mask; warnings) at the model's size. Raises like `decode`,
    `fit_to`, `edit_mask`.

    Without a mask, an opaque image is generated again as a whole, as OpenAI does. Where the image is transparent, the
    `feather` pixels inside the mask's edge continue what is kept.
    """
    whole = decode(image, "image")
    pixels, notes = fit_to(whole.image, size, alpha=alpha)
    notes = [*whole.notes, *notes]
    least = _least(whole.image.getchannel("A"))
    if mask is None and least >= _OPAQUE:
        notes.append("Neither 'mask' nor a transparent part of 'image' was sent: the whole image was generated again.")
        return pixels, bytes([GENERATED]) * (size[0] * size[1]), notes
    hole, small_hole = edit_mask(whole.image, None if mask is None else decode(mask, "mask").image, size)
    if least < 255:
        shown = whole.image if hole.size == size else erased.scaled(whole.image, hole, small_hole)
        shown = erased.continued(shown, small_hole, feather)
        pixels = (shown if alpha else on_white(shown)).tobytes()
        outside = ImageChops.lighter(whole.image.getchannel("A"), hole)
        if not alpha and _least(outside) < 255:
            notes.append(WHITENED)
    return pixels, small_hole.tobytes(), notes


def read_with_recipe(
    image: BinaryIO | None, size: tuple[int, int], wants_alpha: Callable[[Recipe | None], bool] = lambda recipe: False
) -> tuple[bytes, Recipe | None, list[str]]:
    """Read a variation's file as (RGB at the model's size, or RGBA if its recipe makes `wants_alpha` true; recipe if it
    was generated here; warnings)."""
    whole = decode(image, "image")
    alpha = wants_alpha(whole.recipe)
    pixels, notes = fit_to(whole.image, size, alpha=alpha)
    if not alpha and _least(whole.image.getchannel("A")) < 255:
        notes.append(WHITENED)
    return pixels, whole.recipe, [*whole.notes, *notes]


def _least(channel: Image.Image) -> int:
    """The smallest value. The minimum of the bytes of a large image takes many times as long."""
    return next(value for value, count in enumerate(channel.histogram()) if count)


def decode(file: BinaryIO | None, param: str) -> UploadedImage:
    """Check before decoding, then decode. `param` is the field's name, for messages.

    Raises:
        InvalidRequest, BodyTooLarge: the file cannot be used; the message names the limit.
    """
    if file is None:
        raise InvalidRequest(f"Missing required file: '{param}'.", param=param)
    data = file.read(MAX_IMAGE_BYTES + 1)
    if not data:
        raise InvalidRequest(f"'{param}' is an empty file.", param=param)
    if len(data) > MAX_IMAGE_BYTES:
        raise BodyTooLarge(f"'{param}' has more than {MAX_IMAGE_BYTES} bytes; scale the image down.", param=param)
    image = _readable(lambda: Image.open(io.BytesIO(data), formats=FORMATS), param)
    with image:
        _check(image, param)
        # Each scan of a progressive JPEG is a pass over all pixels and takes 16 bytes: 1 MB of them would take minutes.
        if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
            raise InvalidRequest(f"'{param}' is a JPEG of more than {MAX_SCANS} scans; save it again.", param=param)
        recipe = _recipe(image)
        upright = _readable(lambda: ImageOps.exif_transpose(image), param)
        profile = image.info.get("icc_profile")
        rgba, notes = _readable(lambda: to_srgb(upright, profile, param), param)
        if image.format == "PNG" and data[_PNG_DEPTH] == 16:  # Pillow keeps the upper byte
            notes.append(f"'{param}' has 16 bits per channel; they were reduced to 8.")
    return UploadedImage(rgba, recipe, notes)


def _check(image: Image.Image, param: str) -> None:
    """Check the limits by the header alone; nothing is decoded yet."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"'{param}' has {width}x{height} pixels; at most {MAX_PIXELS} (2048x2048) are accepted. Scale it down.",
            param=param,
        )
    frames = _readable(lambda: getattr(image, "n_frames", 1), param)
    if frames > 1 and image.format != "MPO":  # cameras append a preview
        raise InvalidRequest(f"'{param}' is animated ({frames} frames); send a single image.", param=param)
    if image.mode not in _MODES:
        raise InvalidRequest(
            f"'{param}' has pixels of mode {image.mode}; send 8 bits per channel, as grey, palette, RGB or RGBA.",
            param=param,
        )


def _readable(read: Callable[[], T], param: str) -> T:
    """Turn any exception about a broken file into InvalidRequest; Pillow's decoders raise many kinds."""
    try:
        return read()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(
            f"'{param}' has far more than {MAX_PIXELS} pixels (2048x2048). Scale it down.", param=param
        ) from error
    except Image.UnidentifiedImageError as error:
        raise InvalidRequest(f"'{param}' is not a complete PNG, WebP or JPEG file.", param=param) from error
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidRequest(f"'{param}' is damaged: {error}. Save it again.", param=param) from error


def _recipe(image: Image.Image) -> Recipe | None:
    """The recipe, or None: malformed metadata from another program is no reason to reject an image."""
    try:
        return recipe_in(image)
    except Exception:
        return None


def fit_to(image: Image.Image, size: tuple[int, int], *, alpha: bool = False) -> tuple[bytes, list[str]]:
    """Scale an image to the model's size, on white; returns (RGB, warnings). With `alpha` RGBA, as it is.

    Raises:
        InvalidRequest: it has another aspect ratio; cropping is left to the caller.
    """
    width, height = image.size
    if width * size[1] != height * size[0]:
        raise InvalidRequest(
            f"'image' has {width}x{height} pixels; this model generates {size[0]}x{size[1]}, and only images of the "
            "same shape are scaled. Crop or pad it.",
            param="image",
        )
    shown = image if alpha else on_white(image)
    if image.size == size:
        return shown.tobytes(), []
    note = f"'image' was scaled from {width}x{height} to {size[0]}x{size[1]}, the size that this model generates."
    return shown.resize(size, Image.Resampling.LANCZOS).tobytes(), [note]


def on_white(image: Image.Image) -> Image.Image:
    """RGBA -> RGB."""
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")


def edit_mask(image: Image.Image, mask: Image.Image | None, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """The mask at the image's size and at the model's: GENERATED where the mask, or without one the image, is
    transparent, elsewhere KEPT.

    Raises:
        InvalidRequest: no pixel is transparent, or the mask has another size than the image.
    """
    source = mask or image
    if source.size != image.size:
        (width, height), wanted = source.size, image.size
        raise InvalidRequest(
            f"'mask' has {width}x{height} pixels; it must have the {wanted[0]}x{wanted[1]} of 'image'.", param="mask"
        )
    alpha = source.getchannel("A")
    area = alpha.point([GENERATED] * _OPAQUE + [KEPT] * (256 - _OPAQUE))
    fitted = area
    if area.size != size:  # at least half of a pixel's area
        small = area.resize(size, Image.Resampling.BOX)
        fitted = small.point([KEPT] * 128 + [GENERATED] * 128)
    if fitted.getbbox() is None:
        raise InvalidRequest(
            f"'mask' has no transparency; transparent pixels (alpha below {_OPAQUE}) are regenerated.", param="mask"
        )
    return area, fitted
