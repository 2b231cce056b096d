"""Convert uploaded images from their embedded ICC profile to sRGB, the only color space that models know."""

import io

from PIL import Image, ImageCms

#: Color space that a profile declares -> the mode in which its pixels are converted.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(image: Image.Image, profile: bytes | None, param: str) -> tuple[Image.Image, list[str]]:
    """Return the image as RGBA in sRGB, and warnings.

    Args:
        image: decoded pixels in any mode of 8 bits.
        profile: its ICC profile; None: its colors are sRGB already.
        param: the field's name, for messages.
    """
    rgba = image.convert("RGBA")
    if not profile:
        return rgba, []
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        space, name = source.profile.xcolor_space.strip(), ImageCms.getProfileDescription(source).strip()
        mode = _MODES[space]
        if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L") != (image.mode in ("1", "L", "LA", "La")):
            raise KeyError(space)
        colors = image if mode == "CMYK" else rgba.convert(mode)
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(colors, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, KeyError, OSError, ValueError, TypeError):
        return rgba, [f"'{param}' has a color profile that does not fit or is damaged; its colors were taken as sRGB."]
    if converted is None or converted.tobytes() == rgba.convert("RGB").tobytes():
        return rgba, []
    result = converted.convert("RGBA")
    result.putalpha(rgba.getchannel("A"))
    return result, [f"'{param}' was converted from its color profile {name[:80]!r} to sRGB."]
