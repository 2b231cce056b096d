"""Encodes pixels as PNG, WebP or JPEG with the image's recipe as metadata, and reads the recipe back."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from server.errors import InvalidRequest

MIME = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
#: zlib level 1: level 6 costs 1.4 times the time and saves a few percent.
PNG_LEVEL = 1
#: The first 8 bytes of an EXIF user comment name its character set.
_UNICODE = b"UNICODE\x00"


def encode(pixels: bytes, size: tuple[int, int], format: str, compression: int, metadata: Mapping[str, Any]) -> bytes:
    """Encode height * width * 3 RGB bytes, or * 4 RGBA bytes, as a file. `size` is (width, height); `metadata` must be
    JSON-serialisable.

    Raises:
        ValueError: the number of bytes does not fit the size, or the format is unknown or has no alpha.
    """
    width, height = size
    mode = "RGBA" if len(pixels) == width * height * 4 and format != "jpeg" else "RGB"
    if len(pixels) != width * height * len(mode):
        raise ValueError(f"{width}x{height} RGB needs {width * height * 3} bytes, got {len(pixels)}.")
    image = Image.frombytes(mode, size, pixels)
    buffer = io.BytesIO()
    if format == "png":
        image.save(buffer, "PNG", compress_level=PNG_LEVEL, pnginfo=_png_chunks(metadata))
    elif format == "webp":
        image.save(buffer, "WEBP", quality=compression, method=2, exif=_exif(metadata))
    elif format == "jpeg":
        # Pillow advises against quality above 95: the file grows, the quality does not.
        image.save(buffer, "JPEG", quality=min(compression, 95), subsampling=0, exif=_exif(metadata))
    else:
        raise ValueError(f"Unknown format {format!r}; use one of {', '.join(MIME)}.")
    return buffer.getvalue()


def read_metadata(data: bytes) -> dict[str, Any] | None:
    """Read the recipe that `encode` wrote; None if the file has none."""
    with Image.open(io.BytesIO(data)) as image:
        return recipe_in(image)


def recipe_in(image: Image.Image) -> dict[str, Any] | None:
    """Read the recipe of an opened file; None if it has none. Raises ValueError if it is malformed."""
    text = image.info.get("fluid")
    if text is None:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
        if isinstance(comment, str):
            comment = comment.encode("latin-1")
        if not isinstance(comment, bytes) or not comment.startswith(_UNICODE):
            return None
        text = comment[len(_UNICODE) :].decode("utf-16-be")
    found = json.loads(text)
    return found if isinstance(found, dict) else None


def parameters_line(metadata: Mapping[str, Any]) -> str:
    """The human-readable form that image generation tools show: the prompt, the negative one, `Name: value` pairs."""
    names = {
        "num_inference_steps": "Steps",
        "diffusion_steps": "Diffusion steps",
        "guidance_scale": "CFG scale",
        "guidance_schedule": "CFG schedule",
        "temperature": "Temperature",
        "order": "Order",
        "seed": "Seed",
        "size": "Size",
        "model": "Model",
    }
    pairs = [f"{label}: {metadata[name]}" for name, label in names.items() if name in metadata]
    if metadata.get("checkpoint_sha256"):
        pairs.append(f"Model hash: {metadata['checkpoint_sha256'][:10]}")
    lines = [str(metadata.get("prompt", "")), ", ".join(pairs)]
    if metadata.get("negative_prompt"):
        lines.insert(1, f"Negative prompt: {metadata['negative_prompt']}")
    return "\n".join(lines)


def _png_chunks(metadata: Mapping[str, Any]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    # iTXt, not tEXt: prompts are not always Latin-1.
    chunks.add_itxt("parameters", parameters_line(metadata))
    chunks.add_itxt("fluid", json.dumps(metadata, ensure_ascii=False, sort_keys=True))
    return chunks


def _exif(metadata: Mapping[str, Any]) -> Image.Exif:
    exif = Image.Exif()
    text = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _UNICODE + text.encode("utf-16-be")
    return exif


def format_from_name(out: Path) -> str:
    """Return the file format that the name's suffix asks for; png without one. Raises InvalidRequest."""
    suffix = out.suffix.lower().removeprefix(".")
    format = {"jpg": "jpeg", "": "png"}.get(suffix, suffix)
    if format not in MIME:
        raise InvalidRequest(f"--out {out}: use a name that ends in .png, .webp or .jpg.", param="out")
    return format


def check_output(out: Path, background: str | None = None) -> None:
    """Raise InvalidRequest unless a file of that name can be written, and can have that background: before an image is
    generated for it."""
    if background == "transparent" and format_from_name(out) == "jpeg":
        raise InvalidRequest(
            f"--out {out}: jpeg has no transparency. Use a name that ends in .png or .webp, or --background opaque.",
            param="out",
        )
    if out.is_dir():
        raise InvalidRequest(f"--out {out} is a folder: name a file in it, such as {out / 'image.png'}.", param="out")
    folder = next(each for each in out.absolute().parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidRequest(f"--out {out}: no file can be written to {folder}. Choose another folder.", param="out")


def numbered(out: Path, index: int, count: int) -> Path:
    """The file name of image `index` of `count`: `out` itself for a single one."""
    return out if count == 1 else out.with_stem(f"{out.stem}-{index}")
