"""Several models in one service: which one a request gets, and that they do not disturb each other."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from server.errors import ServiceError
from server.images.codec import read_metadata
from server.launcher.embedded_valkey import EmbeddedValkey
from tests.server.conftest import fake_settings
from tests.server.harness import Service, fluid, until

pytestmark = pytest.mark.service
A, B = "fake-a", "fake-b"


@pytest.fixture(scope="module")
def two(valkey: EmbeddedValkey) -> Iterator[Service]:
    """Models A and B with a worker each; requests that name none get B."""
    service = Service(replace(fake_settings(valkey), default_model=B, fake_step_ms=5.0))
    try:
        for model in (A, B):
            service.add_worker(checkpoint=model)
        until(lambda: service.client.health().get("models") == {A: True, B: True}, what="both models")
        yield service
    finally:
        service.close()


def model_of(file: bytes) -> str:
    return str((read_metadata(file) or {})["model"])


def figure(service: Service, name: str, model: str) -> float:
    text = httpx.get(f"{service.settings.base_url}/metrics").text
    [value] = re.findall(rf'^{name}{{model="{model}"}} (\S+)$', text, flags=re.M)
    return float(value)


def test_requests_choose_a_model_and_get_the_default_without(two: Service) -> None:
    counts = {model: figure(two, "fluid_job_latency_seconds_count", model) for model in (A, B)}
    assert [(m["id"], m["default"], m["ready"]) for m in two.client.models()] == [(B, True, True), (A, False, True)]
    for options, model in (({}, B), ({"model": ""}, B), ({"model": A}, A)):
        [image] = two.client.generate("a cat", seed=1, **options)
        assert model_of(image.data) == model
    with pytest.raises(ServiceError, match=f"'model' 'c' is not served here. Served: {A}, {B}") as unknown:
        two.client.generate("a cat", model="c")
    assert (unknown.value.status, unknown.value.code) == (404, "model_not_found")
    with pytest.raises(ServiceError, match=f"'num_inference_steps' must be at most 20000 for {A}"):
        two.client.generate("a cat", model=A, num_inference_steps=20001)
    for model, count in ((A, 1), (B, 2)):
        wanted = counts[model] + count
        until(lambda m=model, n=wanted: figure(two, "fluid_job_latency_seconds_count", m) == n, what=f"{model}'s count")


def test_a_batch_has_lines_of_both(two: Service) -> None:
    bodies = [{"prompt": "a cat", "model": A}, {"prompt": "a cat"}, {"prompt": "a cat", "model": "c"}]
    lines = [json.dumps({"custom_id": str(n), "body": body}) for n, body in enumerate(bodies)]
    batch = two.client.submit_batch("\n".join(lines).encode())["id"]
    until(lambda: two.client.batch(batch)["status"] == "completed", what="the batch")
    done = {each["custom_id"]: each["response"]["body"]["data"][0] for each in two.client.batch_results(batch)}
    assert {n: model_of(base64.b64decode(image["b64_json"])) for n, image in done.items()} == {"0": A, "1": B}
    [failed] = two.client.batch_results(batch, errors=True)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("2", 404)


def test_commands_choose_a_model(two: Service, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a cat"}')
    [image] = two.client.generate("a cat", model=B)
    image.save(tmp_path / "b.png")
    for words, model in (
        (["batch", str(prompts), "-o", str(tmp_path / "batch"), "--model", A], A),
        (["vary", str(tmp_path / "b.png"), "-o", str(tmp_path / "vary" / "a.png"), "--model", A], A),
        (["eval", "prompts", str(prompts), "-o", str(tmp_path / "eval")], B),
    ):
        done = fluid(two.settings, *words)
        assert done.returncode == 0, done.stderr
        [made] = (tmp_path / words[0]).rglob("*.png")
        assert model_of(made.read_bytes()) == model


def test_a_killed_worker_costs_the_other_model_nothing(two: Service) -> None:
    """A's line grows, and B's is empty. The long line of A is done when it has a worker again."""
    two.workers[0].kill()
    until(lambda: two.client.health()["models"] == {A: False, B: True}, what="the loss of A")
    with pytest.raises(ServiceError, match=rf"No live worker serves {A} right now \({B} can be generated with\)"):
        two.client.generate("a cat", model=A)
    waiting = [two.client.submit("a cat", model=A, n=8, num_inference_steps=4)["id"] for _ in range(20)]
    assert two.client.job(waiting[0])["queue"]["is_possible"] is False
    assert figure(two, "fluid_model_queue_row_steps", A) == 20 * 8 * 4
    assert figure(two, "fluid_model_queue_row_steps", B) == 0
    [image] = two.client.generate("a cat", model=B)
    assert image.metrics["batch_size"] == 1
    two.add_worker(checkpoint=A)
    until(lambda: all(two.client.job(each)["status"] == "succeeded" for each in waiting), what="A's line")


def test_a_reload_of_one_model_leaves_the_other_alone(two: Service) -> None:
    """`fluid reload` waited ten minutes for workers that it did not concern."""
    before = {model["id"]: model["checkpoint_sha256"] for model in two.client.models()}
    done = fluid(two.settings, "reload", "--checkpoint", A, "--to", "fake-a-better")
    assert done.returncode == 0, done.stderr
    until(lambda: {m["id"]: m["checkpoint_sha256"] for m in two.client.models()}[A] != before[A], what="the new A")
    after = {model["id"]: model["checkpoint_sha256"] for model in two.client.models()}
    assert after[B] == before[B]
    until(lambda: two.client.health().get("models") == {A: True, B: True}, what="both models")
    done = fluid(two.settings, "reload")
    assert done.returncode == 2
    assert f"No live worker was started with 'atlas-128'. Choose by --checkpoint: {A}, {B}." in done.stderr


def test_a_reload_to_another_model_replaces_it(two: Service) -> None:
    """The old id stayed listed for good, and requests without a model got 503 for it."""
    other = "fake-c"
    try:
        done = fluid(two.settings, "reload", "--checkpoint", B, "--to", other)
        assert done.returncode == 0, done.stderr
        until(lambda: two.client.health()["models"] == {A: True, other: True}, what="the other model")
        assert [(m["id"], m["default"]) for m in two.client.models()] == [(other, True), (A, False)]
        [image] = two.client.generate("a cat", seed=1)
        assert model_of(image.data) == other
        assert two.client.health()["warnings"] == [
            f"a reload has replaced {B}, the FLUID_DEFAULT_MODEL: requests without 'model' get {other}"
        ]
        with pytest.raises(ServiceError, match=f"'{B}' is not served here. Served: {A}, {other}"):
            two.client.generate("a cat", model=B)
        stays = fluid(two.settings, "forget", A)
        assert (stays.returncode, f"A live worker serves {A}" in stays.stderr) == (2, True)
        assert fluid(two.settings, "forget", B).returncode == 0
        scraped = httpx.get(f"{two.settings.base_url}/metrics").text.splitlines()
        told = [line for line in scraped if line.startswith("fluid_model_info{")]  # histograms keep what they counted
        assert len(told) == 2 and not any(f'model="{B}"' in line for line in told), told
    finally:
        fluid(two.settings, "reload", "--checkpoint", B, "--to", B)
    until(lambda: two.client.health().get("models") == {A: True, B: True}, what="the model from before")
    assert "warnings" not in two.client.health()
    assert [(m["id"], m["default"]) for m in two.client.models()] == [(B, True), (A, False)]
