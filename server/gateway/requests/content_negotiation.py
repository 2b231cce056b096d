"""Which kind of answer an Accept header asks for: JSON, or a file, and of which format."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request

from server.errors import InvalidRequest, NotAcceptable
from server.gateway.schemas.images import ImageRequest
from server.images.codec import MIME

R = TypeVar("R", bound=ImageRequest)


def with_format(request: Request, body: R) -> R:
    """The request with the format that its Accept header prefers, if it names none itself.

    Raises:
        NotAcceptable: the header allows none that can be written, or not the one of `output_format`.
    """
    accepted = _accepted(request)
    if not _only_images(accepted):
        return body
    weights = {name: _weight(accepted, mime) for name, mime in MIME.items()}
    allowed = [name for name in MIME if weights[name] > (0.0, 0)]
    asked = "Accept: " + ", ".join(kind for kind, q in accepted if q > 0)[:200]
    if not allowed:
        raise NotAcceptable(f"{asked} cannot be had. Accept {', '.join(MIME.values())} or image/*.")
    if body.output_format is None:
        best = max(allowed, key=weights.__getitem__)
        # A png is what comes anyway: said or not, it is the same request to an Idempotency-Key.
        return body if best == "png" else body.model_copy(update={"output_format": best})
    if body.output_format not in allowed:
        raise NotAcceptable(
            f"'output_format' {body.output_format} is not what {asked} allows. "
            f"Accept {MIME[body.output_format]}, or ask for {' or '.join(allowed)}.",
            param="output_format",
        )
    return body


def wants_the_file(request: Request, n: int) -> bool:
    """Only if the caller asks for images and for nothing that JSON could satisfy.

    Raises:
        InvalidRequest: he does, and there will be several.
    """
    wants_it = _only_images(_accepted(request))
    if wants_it and n != 1:
        raise InvalidRequest(f"'n' must be 1 with Accept: image/*, not {n}; or accept JSON.", param="n")
    return wants_it


def _only_images(accepted: list[tuple[str, float]]) -> bool:
    kinds = [kind for kind, q in accepted if q > 0]
    return bool(kinds) and all(kind.startswith("image/") for kind in kinds)


def _accepted(request: Request) -> list[tuple[str, float]]:
    """(media type in small letters, q) of each, in the order of the header."""
    found = []
    for part in ",".join(request.headers.getlist("accept")).split(","):
        kind, *parameters = (each.strip().lower() for each in part.split(";"))
        q = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        if kind:
            found.append((kind, _quality(q)))
    return found


def _quality(text: str) -> float:
    """0 to 1. Who cannot say how much he wants something still wants it."""
    try:
        q = float(text)
    except ValueError:
        return 1.0
    return min(1.0, q) if q >= 0 else 1.0


def _weight(accepted: list[tuple[str, float]], mime: str) -> tuple[float, int]:
    """(q, how early it is named) of the most exact range, as RFC 9110 has it: a type itself goes before image/*."""
    for wanted in (mime, "image/*"):
        for place, (kind, q) in enumerate(accepted):
            if kind == wanted:
                return q, -place if wanted == mime else -len(accepted)
    return 0.0, 0
