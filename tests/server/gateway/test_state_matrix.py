"""Every kind of record in Redis, as a newer or a broken version may have left it: the service starts and answers.

Each damage is planted beside sound records. No answer is a 500, only the damaged record itself may be a 503
`record_unreadable`, and a new gateway and a new worker start on all damages at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from server.cli.demo import free_port
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.registry import WorkerInfo
from tests.server.conftest import fake_settings
from tests.server.gateway.damaged_records import (
    BYTES,
    INFO,
    WORKER,
    Plant,
    World,
    another_type,
    batch,
    batch_line,
    dead_letter,
    event,
    fields_of,
    file,
    job,
    job_input,
    model,
    request_of,
    resume,
    waiting,
    waiting_string,
    webhook,
    worker,
)
from tests.server.harness import MODEL, Service, fluid, until

pytestmark = pytest.mark.slow
LISTS = ("/health/ready", "/v1/models", "/metrics", "/v1/jobs", "/v1/jobs?status=succeeded", "/v1/batches", "/v1/files")
NOT_JSON = ("", "{", "null", "[]", "7", '"text"', "[" * 2000, BYTES)
MATRIX: dict[str, list[tuple[str, Plant]]] = {
    "job": [
        ("extra fields", job(colour="red", packed=BYTES)),
        ("extra state", job(state="paused")),
        ("extra kind", job(kind="video")),
        *((f"input {text!r:.9}", job(input=text)) for text in NOT_JSON),
        *((f"outputs {text!r:.9}", job(outputs=text)) for text in NOT_JSON),
        *((f"error {text!r:.9}", job(error=text, state="failed")) for text in NOT_JSON),
        ("input with extra keys", job_input(negative_prompt="rain", extra={"a": [1]})),
        ("input of wrong types", job_input(prompt=["a"], n="two")),
        ("numbers out of range", job(created_at="inf", completed_at="nan", attempt="1e9", sequence="x")),
        ("no time", job(created_at=None)),
        ("infinite times", job(created_at="inf")),
        ("no number", job(completed_at="nan", metrics='{"queue_time": NaN}')),
        ("another type", another_type("job_hash", "jobs_zset", "/v1/jobs")),
    ],
    "waiting job": [
        ("extra fields", waiting(colour="red", packed=BYTES)),
        *((f"input {text!r:.9}", waiting(input=text)) for text in NOT_JSON),
        ("no input", waiting(input=None)),
        ("attempts", waiting(attempt="many")),
        ("no class", waiting(**{"class": None})),
        ("another class", waiting(**{"class": "urgent"})),
        ("another caller", waiting(caller="somebody")),
        ("wrong numbers", waiting(work="much", sequence="1.5", result_ttl_s="inf")),
        ("wrong deadline", waiting(deadline="soon")),
        ("wrong bytes", waiting(bytes="many", reserved_bytes="1.5")),
        ("unknown state", lambda world, odd: waiting()(world, odd) and job(state="paused")(world, odd)),
        ("another type", waiting_string),
    ],
    "resumable job": [
        ("bytes", resume(**{"output:0": BYTES, "snapshot:0": BYTES})),
        ("extra", resume(**{"output:x": "{}", "video:1": "v", "output:7": '{"index": 7}'})),
    ],
    "batch": [
        ("extra fields", batch(colour="red", packed=BYTES)),
        ("extra status", batch(status="paused")),
        *((f"metadata {text!r:.9}", batch(metadata=text)) for text in NOT_JSON),
        *((f"errors {text!r:.9}", batch(errors=text, status="failed")) for text in NOT_JSON),
        ("wrong types", batch(total="many", cursor="x", expires_at="soon")),
        ("negative cursor", batch(cursor="-5", status="in_progress")),
        ("no file", batch(input_file_id=None)),
        ("infinite", batch(created_at="inf", status="in_progress")),
        ("another type", another_type("batch_hash", "batch_list", "/v1/batches")),
    ],
    "line": [(f"{text!r:.9}", batch_line(text)) for text in (*NOT_JSON, '{"custom_id": 3, "body": []}')],
    "file": [
        ("extra fields", file(colour="red", packed=BYTES)),
        ("wrong types", file(size_bytes="large", created_at="then")),
        ("infinite", file(created_at="inf")),
        ("no name", file(filename=None)),
        ("bytes", file(filename=BYTES, purpose="archive")),
        ("longer than it is", file(size_bytes="999999999")),
        ("another type", another_type("file_hash", "file_list", "/v1/files")),
    ],
    "webhook": [
        ("extra fields", webhook(colour="red", packed=BYTES)),
        ("wrong types", webhook(attempts="many")),
        ("far attempts", webhook(attempts="9999")),
        ("negative attempts", webhook(attempts="-3")),
        ("no url", webhook(url=None)),
        ("odd url", webhook(url="gopher://[::1")),
        ("bytes", webhook(url=BYTES, message=BYTES)),
    ],
    "worker": [
        *((f"{text!r:.9}", worker(text)) for text in NOT_JSON),
        ("extra fields", worker(json.dumps(WORKER | {"gpu": {"name": "x"}}))),
        ("extra state", worker(json.dumps(WORKER | {"state": "resting"}))),
        ("wrong types", worker(json.dumps(WORKER | {"rows": "many"}))),
    ],
    "model": [
        *((f"{text!r:.9}", model(text)) for text in NOT_JSON),
        ("extra fields", model(json.dumps(INFO | {"id": "newer", "colours": [1]}))),
        ("extra presets", model(json.dumps(INFO | {"id": "newer", "presets": INFO["presets"] | {"ultra": {"x": 1}}}))),
        ("no presets", model(json.dumps(INFO | {"id": "aaa", "presets": {}}))),
        ("wrong types", model(json.dumps(INFO | {"id": "newer", "limits": {"max_n": "many"}}))),
        ("no numbers", model(json.dumps(INFO | {"id": "newer", "limits": {"max_n": float("inf")}}))),
        ("extra limits", model(json.dumps(INFO | {"id": "newer", "limits": {"max_colour": 3, "min_prompt": 1}}))),
        ("wrong presets", model(json.dumps(INFO | {"id": "aab", "presets": {"medium": {"num_inference_steps": "x"}}}))),
        ("wrong defaults", model(json.dumps(INFO | {"id": "aac", "defaults": {"temperature": "hot"}}))),
        ("wrong vocabulary", model(json.dumps(INFO | {"id": "aad", "vocabulary": [3], "styles": None}))),
    ],
    "reload": [
        ("odd", fields_of("reloads_hash", **{"checkpoint:": "soon x", "done:": "x", "begun:": "x", "plan:": BYTES})),
        ("odd numbers", fields_of("reloads_hash", **{"checkpoint:atlas-128": "1e9 other", "done:atlas-128": ""})),
        ("bytes", fields_of("reloads_hash", **{"checkpoint:atlas-128": BYTES, "begun:atlas-128": BYTES})),
    ],
    "dead letter": [
        ("extra fields", dead_letter(new="x", packed=BYTES)),
        *((f"input {text!r:.9}", dead_letter(id="a", attempt="1", error="{}", input=text)) for text in NOT_JSON),
    ],
    "event": [
        ("extra type", event(type="colour", value="red")),
        ("extra state", event(type="status", value="paused")),
        ("wrong value", event(type="progress", value="half")),
        ("bytes", event(type=BYTES, value=BYTES)),
        ("extra fields", event(colour="red")),
    ],
    "statistic": [
        ("extra", fields_of("stats_hash", **{"fluid_new_total||total": "1", "a": "b", "x|y": BYTES})),
        ("extra label", fields_of("stats_hash", **{"fluid_images_total|new|model|total": "nan"})),
        ("counters", fields_of("counters_hash", **{"state:paused": "x", "submitted:video": "2", "new": BYTES})),
    ],
    "crash": [
        *((f"{text!r:.9}", fields_of("crashes_hash", **{f"odd {i}": text})) for i, text in enumerate(NOT_JSON)),
        ("extra", fields_of("crashes_hash", odd=json.dumps({"process": "p", "task": "t", "at": 1e12, "new": 1}))),
    ],
    "beside a job": [
        ("tombstone", request_of("tombstone", "paused ")),
        ("odd tombstone", request_of("tombstone", BYTES)),
        ("idempotency", request_of("idempotency_hash", {"new": "x"})),
        ("last take", request_of("last_take", BYTES)),
    ],
}  # fmt: skip
CASES = [
    pytest.param(kind, name, plant, id=f"{kind}: {name}") for kind, found in MATRIX.items() for name, plant in found
]


@pytest.fixture(scope="module")
def world(valkey: EmbeddedValkey) -> Iterator[World]:
    settings = replace(
        fake_settings(valkey), webhook_secret="whsec_" + "A" * 40, webhook_private="allow", max_attempts=1
    )
    service = Service(settings)
    service.add_worker()
    try:
        service.client.wait_ready(timeout_s=60)
        yield World(service)
    finally:
        service.close()


def check(world: World, paths: list[str]) -> None:
    """The service answers every list, and the damaged record with an error of its own at worst."""
    with httpx.Client(base_url=world.url) as http:
        for path in (*LISTS, f"/v1/jobs/{world.job}", f"/v1/batches/{world.batch}", f"/v1/files/{world.file}"):
            answer = http.get(path)
            assert answer.status_code == 200, (path, answer.text)
        for path in paths:
            try:
                answer = http.get(path)
            except httpx.RemoteProtocolError:  # a stream that ends early
                continue
            unreadable = answer.status_code == 503 and answer.json()["error"]["code"] == "record_unreadable"
            assert answer.status_code < 500 or unreadable, (path, answer.status_code, answer.text)
            if path.count("/") == 3 and "/jobs/" in path:
                canceled = http.post(f"{path}/cancel")
                assert canceled.status_code < 500 or canceled.json()["error"]["code"] == "record_unreadable"
        made = http.post("/v1/images/generations", json={"prompt": "a cat", "quality": "low", "model": MODEL})
        assert made.status_code == 200, made.text


@pytest.mark.parametrize(("kind", "name", "plant"), CASES)
def test_the_service_answers_beside_a_damaged_record(kind: str, name: str, plant: Plant, world: World) -> None:
    """Bytes in a field failed the whole reply of Redis, and a model without presets every request without a model."""
    odd = re.sub(r"\W+", "-", f"odd {kind} {name}")
    paths = plant(world, odd)
    check(world, paths)
    with httpx.Client(base_url=world.url) as http:
        for published in ("newer", "aaa", "aab", "aac", "aad"):
            answer = http.post("/v1/jobs", json={"prompt": "a cat", "model": published})
            assert answer.status_code in (202, 400, 404), answer.text
        by_default = http.post("/v1/images/generations", json={"prompt": "a cat", "quality": "low"})
        assert by_default.status_code == 200, by_default.text
    assert world.service.gateway.poll() is None and world.service.workers[0].poll() is None


def test_gateway_and_worker_start_on_every_damage_at_once(world: World) -> None:
    """What lies in Redis can keep no process from starting, and no operator's command from its work."""
    for number, case in enumerate(CASES):
        case.values[2](world, f"again-{number}")  # type: ignore[operator, index]
    fresh = Service(replace(world.service.settings, port=free_port()))
    try:
        fresh.add_worker()
        until(lambda: len([w for w in live(world) if w.state == "ready"]) >= 2, what="a second worker")
        fresh.client.wait_ready(timeout_s=60)
        assert fresh.client.generate("a cat", quality="low", model=MODEL)
        for words in (["doctor"], ["dlq", "list"]):
            done = fluid(world.service.settings, *words)
            assert "Traceback" not in done.stderr and done.stdout, done.stderr
    finally:
        fresh.close()
    check(world, [])


def live(world: World) -> list[WorkerInfo]:
    found = []
    for key in world.redis.scan_iter(f"{world.keys.root}:worker:*"):
        try:
            raw = json.loads(world.redis.get(key) or "")
            found.append(WorkerInfo(**{name: raw[name] for name in WorkerInfo.__dataclass_fields__ if name in raw}))
        except (ValueError, TypeError, RecursionError):
            continue
    return [info for info in found if info.model == MODEL]
