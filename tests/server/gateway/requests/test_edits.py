"""Edits and variations as they are resolved: what an image's own recipe adds to the request."""

import dataclasses
import io
from typing import Any

import pytest

from server.gateway.requests.client_mapping import NO_MAPPING
from server.gateway.requests.edits import resolve_variation
from server.gateway.schemas.edits import VariationRequest
from server.images.codec import encode
from server.images.uploads import WHITENED
from server.jobs import JobInput
from server.model_info import ModelInfo
from server.worker.engine.fake import SIZE, FakeEngine

pytestmark = pytest.mark.anyio
OPAQUE = ModelInfo.from_mapping(FakeEngine(1, 0).info())
ABLE = dataclasses.replace(OPAQUE, transparent=True)


async def varied(info: ModelInfo, recipe: dict[str, Any], **asked: Any) -> tuple[JobInput, list[str]]:
    file = encode(bytes([9, 200, 30, 77]) * SIZE[0] * SIZE[1], SIZE, "png", 100, {"prompt": "a cat"} | recipe)
    request = VariationRequest(**asked)
    request, job, _, warnings = await resolve_variation(
        request, io.BytesIO(file), "job_1", {info.id: info}, info.id, NO_MAPPING
    )
    assert (request.background or "opaque", request.prompt) == (job.background, "a cat")
    return job, [each for each in warnings if "prompt" not in each]


@pytest.mark.parametrize(
    ("info", "recipe", "asked", "transparent"),
    [
        (ABLE, {"background": "transparent"}, {}, True),
        (ABLE, {"background": "transparent"}, {"output_format": "webp"}, True),
        (ABLE, {"background": "transparent"}, {"output_format": "jpeg"}, False),
        (ABLE, {"background": "transparent"}, {"background": "opaque"}, False),
        (OPAQUE, {"background": "transparent"}, {}, False),
        (ABLE, {"background": ["transparent"]}, {}, False),
        (ABLE, {}, {}, False),
    ],
)
async def test_a_variation_takes_its_background_from_the_image(
    info: ModelInfo, recipe: dict[str, Any], asked: dict[str, Any], transparent: bool
) -> None:
    """Variations of a transparent image took its prompt from its file, but came out opaque, on white."""
    job, warnings = await varied(info, recipe, **asked)
    assert (job.background, job.channels) == (("transparent", 4) if transparent else ("opaque", 3))
    assert warnings == ["'background' was taken from the image: transparent." if transparent else WHITENED]
