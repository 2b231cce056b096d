"""The image request, and how it resolves against a model's defaults and limits."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.errors import InvalidRequest, NoWorkers, UnknownModel
from server.gateway.requests.resolve import resolve
from server.gateway.requests.validation import from_validation
from server.gateway.schemas.images import MAX_SEED, ImageRequest
from server.jobs import JobInput
from server.model_info import ModelInfo
from server.sampling import SAMPLING_FIELDS
from server.worker.engine.fake import FakeEngine
from server.worker.engine.protocol import RowRequest

INFO = ModelInfo.from_mapping(FakeEngine(1, 0).info())


def rejection(**body: Any) -> InvalidRequest:
    with pytest.raises((ValidationError, InvalidRequest)) as caught:
        resolve(ImageRequest.model_validate(body), {INFO.id: INFO}, INFO.id)
    error = caught.value
    return error if isinstance(error, InvalidRequest) else from_validation(dict(error.errors()[0]))


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "prompt", "Missing"),
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"prompt": "  "}, "prompt", "blank"),
        ({"prompt": "x" * 2001}, "prompt", "2000"),
        ({"prompt": "x", "n": 11}, "n", "10"),
        ({"prompt": "x", "n": "3"}, "n", "integer"),
        ({"prompt": "x", "n": True}, "n", "integer"),
        ({"prompt": "x", "size": "big"}, "size", "WIDTHxHEIGHT"),
        ({"prompt": "x", "size": "64x64"}, "size", "32x32"),
        ({"prompt": "x", "seed": -1}, "seed", "0"),
        ({"prompt": "x", "seed": MAX_SEED, "n": 2}, "seed", str(MAX_SEED)),
        ({"prompt": "x", "order": "raster"}, "order", "random or halton or gtr for fake"),
        ({"prompt": "x", "top_k": 0}, "top_k", "1"),
        ({"prompt": "x", "top_p": 1.5}, "top_p", "1"),
        ({"prompt": "x", "top_p": 0.9}, "top_p", "those of fake are continuous"),
        ({"prompt": "x", "guidance_interval": [0.5]}, "guidance_interval", "at least 2"),
        ({"prompt": "x", "guidance_interval": [0.8, 0.2]}, "guidance_interval", "begin before it ends"),
        ({"prompt": "x", "guidance_interval": [0.0, 1.5]}, "guidance_interval", "1"),
        ({"prompt": "x", "diffusion_steps_final": 5000}, "diffusion_steps_final", "at most 1000"),
        ({"prompt": "x", "temperature": 9.0}, "temperature", "at most 2"),
        ({"prompt": "x", "guidance_scale": float("nan")}, "guidance_scale", "finite"),
        ({"prompt": "x", "num_inference_steps": 99999}, "num_inference_steps", "at most 20000"),
        ({"prompt": "x", "stream": 1}, "stream", "boolean"),
        ({"prompt": "x", "partial_images": 4}, "partial_images", "3"),
        ({"prompt": "x", "negative_prompt": "y" * 2001}, "negative_prompt", "2000"),
        ({"prompt": "x", "negative_prompt": "y\0"}, "negative_prompt", "null character"),
        ({"prompt": "x", "negative_prompt": 3}, "negative_prompt", "string"),
        ({"prompt": "x", "negative_prompt": "y", "guidance_scale": 0.5}, "negative_prompt", "above 1"),
        ({"prompt": "x", "priority": "urgent"}, "priority", "'high', 'normal' or 'low'"),
        ({"prompt": "x", "background": "transparant"}, "background", "'auto', 'opaque' or 'transparent'"),
        ({"prompt": "x", "background": ""}, "background", "'auto', 'opaque' or 'transparent'"),
        ({"prompt": "x", "deadline_ms": 0}, "deadline_ms", "1"),
        ({"prompt": "x", "deadline_ms": 1.5}, "deadline_ms", "integer"),
        ({"prompt": "x", "sead": 3}, "sead", "Did you mean 'seed'"),
    ],
)
def test_a_rejection_names_the_parameter_and_its_limit(body: dict[str, Any], param: str, says: str) -> None:
    """Parameters that are ignored silently or rejected vaguely are the most reported annoyance of similar services."""
    error = rejection(**body)
    assert error.param == param
    assert says in error.message
    assert error.status == 400


def test_an_unknown_model_is_a_404_that_names_what_is_served() -> None:
    models = {"fake": INFO, "other": dataclasses.replace(INFO, id="other")}
    with pytest.raises(UnknownModel, match=r"'model' 'gpt' is not served here\. Served: fake, other") as unknown:
        resolve(ImageRequest(prompt="x", model="gpt"), models, "fake")
    assert (unknown.value.status, unknown.value.code, unknown.value.param) == (404, "model_not_found", "model")
    with pytest.raises(NoWorkers, match=r"loaded 'later' yet.*set 'model' to one of: fake, other"):
        resolve(ImageRequest(prompt="x"), models, "later")
    job, _ = resolve(ImageRequest(prompt="x", model="other"), models, "later")
    assert job.model == "other"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"num_inference_steps": 8}, "num_inference_steps", "always 16 for fake, not 8"),
        ({"diffusion_steps": 5}, "diffusion_steps", "always 1 for fake, not 5"),
        ({"order": "random"}, "order", "must be raster for fake"),
        ({"top_k": 33}, "top_k", "at most 32"),
    ],
)
def test_a_model_in_raster_order_over_discrete_tokens_has_fixed_parameters(
    body: dict[str, Any], param: str, says: str
) -> None:
    limits = {"max_num_inference_steps": 16, "min_num_inference_steps": 16, "max_top_k": 32}
    info = dataclasses.replace(
        INFO, system="raster-discrete", orders=("raster",),
        presets={name: {"num_inference_steps": 16, "diffusion_steps": 1} for name in ("low", "medium", "high")},
        defaults={**INFO.defaults, "order": "raster"},
        limits={**limits, "max_diffusion_steps": 1, "min_diffusion_steps": 1},
    )  # fmt: skip
    job, _ = resolve(ImageRequest(prompt="x", top_k=5, top_p=0.9), {INFO.id: info}, INFO.id)
    assert (job.sampling.order, job.sampling.top_k, job.sampling.top_p) == ("raster", 5, 0.9)
    with pytest.raises(InvalidRequest) as caught:
        resolve(ImageRequest.model_validate({"prompt": "x", **body}), {INFO.id: info}, INFO.id)
    assert caught.value.param == param and says in caught.value.message


def test_every_default_is_resolved() -> None:
    """A job must not depend on defaults that a later release may change."""
    job, warnings = resolve(ImageRequest(prompt="cat", style="vivid"), {INFO.id: INFO}, INFO.id)
    assert (job.sampling.num_inference_steps, job.sampling.diffusion_steps, job.quality) == (8, 8, "medium")
    assert 0 <= job.seed < 2**32
    assert warnings == ["'style' has no effect here."]


def test_a_transparent_background_needs_a_model_with_alpha() -> None:
    """Elsewhere it is opaque, with a warning, which used to say that it had no effect, as misspelt ones did;
    jpeg has no alpha, and was accepted from models without it."""
    able = dataclasses.replace(INFO, transparent=True)

    def background(info: ModelInfo, text: str, **others: Any) -> tuple[str, int, list[str]]:
        request = ImageRequest.model_validate({"prompt": "an apple", "background": text, **others})
        job, warnings = resolve(request, {info.id: info}, info.id)
        return job.background, job.channels, warnings

    assert background(able, "transparent", output_format="webp") == ("transparent", 4, [])
    assert background(able, "opaque", output_format="jpeg") == ("opaque", 3, [])
    assert background(able, "auto") == background(INFO, "opaque") == ("opaque", 3, [])
    assert background(INFO, "transparent") == (
        "opaque",
        3,
        ["'background' transparent became opaque: fake generates no alpha."],
    )
    for info in (able, INFO):
        with pytest.raises(InvalidRequest, match="png or webp"):
            background(info, "transparent", output_format="jpeg")


def test_every_sampling_parameter_can_be_requested() -> None:
    assert set(SAMPLING_FIELDS) <= set(ImageRequest.model_fields)


def test_a_preset_is_overridden_by_explicit_steps() -> None:
    """quality is a shorthand; an explicit step count takes precedence."""
    request = ImageRequest(prompt="x", quality="high", num_inference_steps=5)
    job, _ = resolve(request, {INFO.id: INFO}, INFO.id)
    assert (job.sampling.num_inference_steps, job.sampling.diffusion_steps) == (5, 16)


def test_a_presets_final_steps_apply_only_with_its_own_step_count() -> None:
    """An explicit number of diffusion steps applies to every step, without the preset's smaller number at the end."""
    preset = {"num_inference_steps": 8, "diffusion_steps": 50, "diffusion_steps_final": 5, "order": "halton"}
    info = dataclasses.replace(INFO, presets={"medium": preset})
    job, _ = resolve(ImageRequest(prompt="x"), {info.id: info}, info.id)
    assert (job.sampling.diffusion_steps, job.sampling.diffusion_steps_final, job.sampling.order) == (50, 5, "halton")
    job, _ = resolve(ImageRequest(prompt="x", diffusion_steps=20, order="random"), {info.id: info}, info.id)
    assert (job.sampling.diffusion_steps, job.sampling.diffusion_steps_final, job.sampling.order) == (
        20,
        None,
        "random",
    )
    job, _ = resolve(ImageRequest(prompt="x", guidance_interval=[0.2, 0.8]), {info.id: info}, info.id)
    assert job.sampling.guidance_interval == (0.2, 0.8)
    assert RowRequest.of(job, 0).sampling == job.sampling
    assert job.sampling.order == "halton"


@given(
    prompt=st.text(min_size=1, max_size=50).filter(lambda s: s.strip()),
    seed=st.integers(0, MAX_SEED - 10),
    n=st.integers(1, 10),
    temperature=st.floats(0.1, 2.0),
)
def test_a_job_survives_serialization(prompt: str, seed: int, n: int, temperature: float) -> None:
    """Any accepted prompt, 63-bit seed or float must come back from JSON unchanged."""
    request = ImageRequest(prompt=prompt, seed=seed, n=n, temperature=temperature)
    job, _ = resolve(request, {INFO.id: INFO}, INFO.id)
    assert JobInput.from_json(job.to_json()) == job
    assert [job.seed_of(i) for i in range(n)] == list(range(seed, seed + n))


def test_model_info_survives_serialization() -> None:
    """The gateway must see exactly what the worker published."""
    assert ModelInfo.from_mapping(json.loads(INFO.to_json())) == INFO
