"""Content negotiation: JSON or an image file, and in which format, from the Accept header."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

from fastapi import Request

from server.errors import InvalidRequest, NotAcceptable
from server.gateway.schemas.images import ImageRequest
from server.images.codec import MIME

R = TypeVar("R", bound=ImageRequest)
Accepted = tuple[tuple[str, float], ...]


def with_format(request: Request, body: R) -> R:
    """Set `output_format` to the one the Accept header prefers, of those that have alpha if the background is to be
    transparent, unless the request names one itself.

    Raises:
        NotAcceptable: the header allows no format that this service can write, or not the requested one.
    """
    accepted = _accepted(request)
    if not _images_only(accepted):
        return body
    weights = {name: _weight(accepted, mime) for name, mime in MIME.items()}
    allowed = [name for name in MIME if weights[name] > (0.0, 0)]
    asked = "Accept: " + ", ".join(kind for kind, q in accepted if q > 0)[:200]
    if not allowed:
        raise NotAcceptable(f"{asked} cannot be served. Accept {', '.join(MIME.values())} or image/*.")
    if body.output_format is None:
        fitting = [name for name in allowed if name != "jpeg" or body.background != "transparent"]
        if not fitting:
            raise NotAcceptable(
                f"'background' transparent cannot be served with {asked}; jpeg has no transparency. "
                f"Accept {MIME['png']} or {MIME['webp']}.",
                param="background",
            )
        best = max(fitting, key=weights.__getitem__)
        # PNG is the default: leaving it unset keeps the fingerprint the same for an Idempotency-Key.
        return body if best == "png" else body.model_copy(update={"output_format": best})
    if body.output_format not in allowed:
        raise NotAcceptable(
            f"'output_format' {body.output_format} is not allowed by {asked}. "
            f"Accept {MIME[body.output_format]}, or set 'output_format' to {' or '.join(allowed)}.",
            param="output_format",
        )
    return body


def wants_image_bytes(request: Request, n: int) -> bool:
    """Return true if the Accept header lists image types only, so that JSON would not satisfy it.

    Raises:
        InvalidRequest: it does, but the request is for several images.
    """
    wanted = _images_only(_accepted(request))
    if wanted and n != 1:
        raise InvalidRequest(f"'n' must be 1 with Accept: image/*, not {n}; or accept JSON.", param="n")
    return wanted


def _images_only(accepted: Accepted) -> bool:
    kinds = [kind for kind, q in accepted if q > 0]
    return bool(kinds) and all(kind.startswith("image/") for kind in kinds)


def _accepted(request: Request) -> Accepted:
    """Parse the header into (media type in lower case, q), in its order."""
    return _parse(",".join(request.headers.getlist("accept")))


@lru_cache(maxsize=64)
def _parse(header: str) -> Accepted:
    found = []
    for part in header.split(","):
        kind, *parameters = (each.strip().lower() for each in part.split(";"))
        q = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        if kind:
            found.append((kind, _quality(q)))
    return tuple(found)


def _quality(text: str) -> float:
    """Parse a q-value, clamped to at most 1; a malformed one counts as 1."""
    try:
        q = float(text)
    except ValueError:
        return 1.0
    return min(1.0, q) if q >= 0 else 1.0


def _weight(accepted: Accepted, mime: str) -> tuple[float, int]:
    """Return (q, rank by position) of the most specific range that matches: RFC 9110 puts a type before image/*."""
    for wanted in (mime, "image/*"):
        for position, (kind, q) in enumerate(accepted):
            if kind == wanted:
                return q, -position if wanted == mime else -len(accepted)
    return 0.0, 0
