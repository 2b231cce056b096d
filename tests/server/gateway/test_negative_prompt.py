"""`negative_prompt` through every route, in the image's file, and where a model or its guidance has no use for it."""

import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from server.errors import InvalidRequest
from server.gateway.requests.resolve import resolve
from server.gateway.schemas.images import ImageRequest
from server.images.codec import MIME, parameters_line, read_metadata
from server.jobs import JobInput
from server.model_info import ModelInfo
from server.settings import Settings
from server.worker.engine.fake import FakeEngine
from server.worker.engine.protocol import RowRequest
from tests.server.gateway.batches.test_runner import create, jsonl, results, wait_until_over
from tests.server.gateway.routes.test_edits import gradient, mask, png
from tests.server.harness import Service, fluid

INFO = ModelInfo.from_mapping(FakeEngine(1, 0).info())
LABELS = dataclasses.replace(INFO, labels=("apple, malus", "cat"))


def resolved(info: ModelInfo = INFO, **body: Any) -> tuple[JobInput, list[str]]:
    return resolve(ImageRequest.model_validate({"prompt": "cat", **body}), {info.id: info}, info.id)


def test_it_reaches_the_engine_and_survives_serialization() -> None:
    job, warnings = resolved(negative_prompt="apple", n=2)
    assert JobInput.from_json(job.to_json()) == job and job.parameters()["negative_prompt"] == "apple"
    assert RowRequest.of(job, 1).negative_prompt == "apple" and warnings == []


@pytest.mark.parametrize("blank", [None, "", " \n"])
def test_a_blank_one_is_none(blank: str | None) -> None:
    """Forms send the field empty; the request is the one without it, for its fingerprint and its image."""
    plain = ImageRequest(prompt="cat", seed=1)
    sent = ImageRequest(prompt="cat", seed=1, negative_prompt=blank)
    assert sent.fingerprint() == plain.fingerprint()
    assert resolved(negative_prompt=blank, seed=1) == resolved(seed=1)
    assert resolved(LABELS, negative_prompt=blank)[0].prompt == "cat"
    assert ImageRequest(prompt="cat", seed=1, negative_prompt="dog").fingerprint() != plain.fingerprint()


def test_a_class_conditional_model_refuses_it_and_says_why() -> None:
    with pytest.raises(InvalidRequest, match="class labels") as caught:
        resolved(LABELS, negative_prompt="apple")
    assert caught.value.param == "negative_prompt" and caught.value.status == 400


def test_a_model_with_a_learned_branch_refuses_it_and_says_why() -> None:
    """Janus-Pro and LlamaGen; the worker would refuse it too, but after the queue."""
    with pytest.raises(InvalidRequest, match="learned branch for no prompt") as caught:
        resolved(dataclasses.replace(INFO, negative_prompts=False), negative_prompt="apple")
    assert caught.value.param == "negative_prompt" and caught.value.status == 400


@pytest.mark.parametrize("guidance", [0.0, 0.5, 0.99])
def test_guidance_that_would_lead_towards_it_is_refused(guidance: float) -> None:
    """At 0 the image would be one of the negative prompt."""
    with pytest.raises(InvalidRequest, match=f"'guidance_scale' of {guidance:g} would lead towards it") as caught:
        resolved(negative_prompt="apple", guidance_scale=guidance)
    assert caught.value.param == "negative_prompt"


@pytest.mark.parametrize(
    "unguided", [{"guidance_scale": 1.0}, {"guidance_scale": 1}, {"guidance_interval": [0.5, 0.5]},
                 {"guidance_interval": [0.51, 0.6], "num_inference_steps": 4}, {"guidance_interval": [1.0, 1.0]}],
)  # fmt: skip
def test_without_guidance_a_warning_says_that_it_has_no_effect(unguided: dict[str, Any]) -> None:
    _, [warning] = resolved(negative_prompt="apple", **unguided)
    assert warning.startswith("'negative_prompt' has no effect without guidance")
    assert resolved(**unguided)[1] == []


def test_at_a_quality_without_guidance_it_brings_its_own() -> None:
    """With guidance in the weights the presets have a scale of 1, and every negative prompt was without effect."""
    presets = {name: {**preset, "guidance_scale": 1.0} for name, preset in INFO.presets.items()}
    info = dataclasses.replace(INFO, presets=presets)
    job, [warning] = resolved(info, negative_prompt="apple", quality="low")
    assert job.sampling.guidance_scale == 1.5
    assert warning.startswith("'guidance_scale' became 1.5: a 'negative_prompt' acts") and "quality low" in warning
    assert resolved(info, quality="low")[0].sampling.guidance_scale == 1
    asked, [warning] = resolved(info, negative_prompt="apple", guidance_scale=1)
    assert asked.sampling.guidance_scale == 1 and "has no effect" in warning
    assert resolved(info, negative_prompt="apple", guidance_scale=3)[1] == []


def test_its_unknown_words_are_named() -> None:
    """A model that does not know the word cannot steer away from it."""
    _, warnings = resolved(prompt="a dragon", negative_prompt="a zeppelin and an appel")
    assert "'prompt'" in warnings[0] and "dragon" in warnings[0]
    assert "'negative_prompt'" in warnings[1] and "zeppelin, appel (nearest: apple)" in warnings[1]


def test_the_line_of_parameters_has_it_where_other_tools_look() -> None:
    line = parameters_line({"prompt": "a cat", "negative_prompt": "rain", "seed": 3})
    assert line == "a cat\nNegative prompt: rain\nSeed: 3"
    assert parameters_line({"prompt": "a cat", "seed": 3}) == "a cat\nSeed: 3"


@pytest.mark.parametrize("format", MIME)
def test_an_image_is_made_again_from_its_file(service: Service, format: str) -> None:
    [image] = service.client.generate("a cat", seed=5, negative_prompt="a ☕ cup", output_format=format)
    [plain] = service.client.generate("a cat", seed=5, output_format=format)
    assert (read_metadata(image.data) or {})["negative_prompt"] == "a ☕ cup"
    assert "negative_prompt" not in (read_metadata(plain.data) or {})
    assert image.data != plain.data
    assert service.client.like(image.data, output_format=format)[0].data == image.data


def test_every_route_takes_it(service: Service) -> None:
    """Images, jobs, edits, variations and batches; one image and one recipe, whichever way it is asked for."""
    body = {"prompt": "a cat", "negative_prompt": "a dog", "seed": 5, "num_inference_steps": 4}
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        options = {name: value for name, value in body.items() if name != "prompt"}
        direct = client.images.generate(prompt="a cat", extra_body=options)
        assert direct.data is not None
        file = base64.b64decode(direct.data[0].b64_json or "")
        batch = wait_until_over(client, create(client, jsonl(body, body | {"guidance_scale": 0.5})).id)
        lines = results(client, batch.output_file_id) | results(client, batch.error_file_id)
        assert base64.b64decode(lines["line-0"]["body"]["data"][0]["b64_json"]) == file
        assert lines["line-1"]["body"]["error"]["param"] == "negative_prompt"
    with httpx.Client(base_url=service.settings.base_url) as http:
        job = http.post("/v1/jobs", json=body, headers={"Prefer": "wait"}).json()
        assert job["input"]["negative_prompt"] == "a dog"
        assert http.get(job["output"][0]["url"]).content == file
        for route, files in (("edits", {"image": png(gradient()), "mask": png(mask())}),
                             ("variations", {"image": png(gradient())})):  # fmt: skip
            form = {name: str(value) for name, value in body.items()}
            answers = [http.post(f"/v1/images/{route}", data=form | change, files=files).json() for change in
                       ({}, {"negative_prompt": ""}, {"guidance_scale": "0.5"})]  # fmt: skip
            with_it, without = (base64.b64decode(a["data"][0]["b64_json"]) for a in answers[:2])
            assert (read_metadata(with_it) or {})["negative_prompt"] == "a dog"
            pixels = [Image.open(io.BytesIO(data)).tobytes() for data in (with_it, without)]
            assert pixels[0] != pixels[1]
            assert answers[2]["error"]["param"] == "negative_prompt"
        refused = http.post("/v1/images/generations", json=body | {"guidance_scale": 0.2})
        assert refused.status_code == 400 and json.loads(refused.text)["error"]["param"] == "negative_prompt"


def test_the_command_takes_it(settings: Settings, tmp_path: Path) -> None:
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    done = fluid(settings, "generate", "a cat", "--negative-prompt", "a cup", "--seed", "3", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert (read_metadata(out.read_bytes()) or {})["negative_prompt"] == "a cup"
    assert fluid(settings, "generate", "--like", str(out), "--out", str(again)).returncode == 0
    assert again.read_bytes() == out.read_bytes()
