"""Which file format an Accept header asks for."""

import pytest
from fastapi import Request

from server.errors import NotAcceptable
from server.gateway.requests.content_negotiation import with_format
from server.gateway.schemas.images import ImageRequest


def negotiated(accept: str, background: str | None) -> str:
    request = Request({"type": "http", "headers": [(b"accept", accept.encode())]})
    body = ImageRequest.model_validate({"prompt": "a cat", "background": background})
    return with_format(request, body).output_format or "png"


@pytest.mark.parametrize(
    ("accept", "opaque", "transparent"),
    [
        ("image/jpeg, image/png;q=0.9", "jpeg", "png"),
        ("image/jpeg, image/webp;q=0.5, image/png;q=0.1", "jpeg", "webp"),
        ("image/jpeg, image/*;q=0.1", "jpeg", "png"),
        ("image/webp, image/jpeg", "webp", "webp"),
    ],
)
def test_a_transparent_background_is_never_negotiated_as_jpeg(accept: str, opaque: str, transparent: str) -> None:
    """A browser-like header that prefers jpeg was a 400 about 'output_format', which the request did not have."""
    assert negotiated(accept, None) == negotiated(accept, "opaque") == opaque
    assert negotiated(accept, "transparent") == transparent


def test_a_header_of_jpeg_alone_is_named_when_alpha_is_wanted() -> None:
    with pytest.raises(NotAcceptable, match=r"with Accept: image/jpeg; .* Accept image/png or image/webp") as refused:
        negotiated("image/jpeg", "transparent")
    assert (refused.value.status, refused.value.param) == (406, "background")
