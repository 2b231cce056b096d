"""No planted secret or prompt is in any log, error, report, metric or process argument of a whole service."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import redis

from server.client import FluidClient
from server.gateway.api_keys import hash_key
from server.launcher import subprocesses
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.keys import Keys
from tests.clients.python_clients import png
from tests.end_to_end.planted_secrets import (
    ALICE,
    BOB,
    PROMPT,
    SECRETS,
    URL_TOKEN,
    Caller,
    Witness,
    environment,
    run,
    run_until,
)
from tests.server.harness import http_server, until

pytestmark = pytest.mark.slow


@pytest.fixture
def witness() -> Iterator[Witness]:
    made = Witness()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def receiver() -> Iterator[str]:
    """A receiver of webhooks that never accepts one."""

    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(410 if "gone" in self.path else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http_server(Refuses) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        password = SECRETS["password of Redis"]
        with redis.Redis.from_url(server.url) as admin:
            admin.execute_command("ACL", "SETUSER", "fluid", "on", f">{password}", "~*", "&*", "+@all")
        yield server


def line(body: dict[str, object], number: int = 0) -> str:
    return json.dumps({"custom_id": f"l{number}", "method": "POST", "url": "/v1/images/generations", "body": body})


def succeed_and_fail(caller: Caller, receiver: str) -> None:
    """Requests that succeed, that are refused, and that fail in the worker."""
    generations = "/v1/images/generations"
    assert caller.send("POST", generations, json={"prompt": PROMPT}).status_code == 200
    assert caller.send("POST", generations, json={"prompt": PROMPT, "stream": True}).status_code == 200
    for fault in ("[raise]", "[raise-admit]", "[impossible]", "[wrong-shape]", "[kill]"):
        assert caller.send("POST", generations, json={"prompt": f"{fault} {PROMPT}"}).status_code in (400, 500)
        with FluidClient(str(caller.http.base_url), api_key=ALICE) as client:
            client.wait_ready(timeout_s=90)
    for wrong in (
        {"prompt": [PROMPT]}, {"prompt": PROMPT, PROMPT: 1}, {"prompt": PROMPT, "size": PROMPT},
        {"prompt": PROMPT, "seed": PROMPT}, {"prompt": PROMPT * 200}, {"prompt": PROMPT, "model": PROMPT},
        {"prompt": PROMPT, "webhook": f"ftp://{URL_TOKEN}"},
    ):  # fmt: skip
        assert caller.send("POST", "/v1/jobs", json=wrong).status_code in (400, 404, 422), wrong
    for body in (f'{{"prompt": "{PROMPT}", }}', f'{{"prompt": {"9" * 5000}, "x": "{PROMPT}"}}', PROMPT):
        caller.send("POST", "/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    for key in (SECRETS["unknown key"], f"{ALICE} {BOB}"):
        assert caller.send("GET", "/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    for _ in range(4):
        caller.send("POST", "/v1/jobs", json={"prompt": PROMPT}, headers={"Authorization": f"Bearer {BOB}"})
    for path in ("/v1/images/edits", "/v1/images/variations"):
        for data in (png(), PROMPT.encode()):
            caller.send("POST", path, data={"prompt": PROMPT}, files={"image": ("a.png", data, "image/png")})
    token = SECRETS["token in a webhook's URL"]
    for hook in (
        f"{receiver}/{token}",
        f"{receiver}/gone/{token}",
        f"http://127.0.0.1:1/{token}",
        f"http://a..b/{token}",
    ):
        caller.send("POST", "/v1/jobs", json={"prompt": PROMPT, "webhook": hook})


def run_batches(caller: Caller) -> None:
    good = "\n".join(line({"prompt": PROMPT, "n": 1}, number) for number in range(5))
    mixed = "\n".join(
        line(body, i) for i, body in enumerate(({"prompt": PROMPT, "x": 1}, {"prompt": f"[raise] {PROMPT}"}))
    )
    batches = [caller.batch(text) for text in (good, mixed, f'{{"prompt": "{PROMPT}"', f"{line({})}\n{PROMPT}")]
    for batch in batches:
        until(caller.over(batch), what="the batch")
        for kind in ("file-out-", "file-err-"):
            caller.send("GET", f"/v1/files/{kind}{batch}/content")


def damage(valkey: EmbeddedValkey, namespace: str, caller: Caller, witness: Witness, env: dict[str, str]) -> None:
    """Records that cannot be read, and a Redis that refuses writes: their errors quote commands and records."""
    keys, admin = Keys(namespace), redis.Redis.from_url(valkey.url, decode_responses=True)
    with admin:
        job = caller.send("POST", "/v1/jobs", json={"prompt": PROMPT}).json()["id"]
        until(lambda: caller.send("GET", f"/v1/jobs/{job}").json().get("status") == "succeeded")
        whole = json.loads(admin.hget(keys.job_hash(job), "input") or "")
        for odd in ({"prompt": [PROMPT]}, {"seed": PROMPT}, {"edit": PROMPT}):
            admin.hset(keys.job_hash(job), "input", json.dumps(whole | odd))
            caller.send("GET", "/v1/jobs")
            caller.send("GET", f"/v1/jobs/{job}")
        admin.hset(keys.job_hash(job), mapping={"input": json.dumps(whole), "state": PROMPT})
        caller.send("GET", "/v1/jobs")
        admin.hset(keys.models_hash, "odd", json.dumps({"id": PROMPT, "image_size": [PROMPT]}))
        admin.xadd(keys.dead_letters_stream, {"id": "odd", "kind": "job", "attempt": PROMPT})
        batch = caller.batch(line({"prompt": PROMPT}))
        until(lambda: admin.exists(keys.batch_index(batch)), what="the lines")
        until(caller.over(batch), what="the batch")
        content = keys.file_bytes(admin.hget(keys.batch_hash(batch), "input_file_id") or "")
        damaged = json.dumps({"custom_id": [PROMPT], "body": PROMPT})
        admin.set(content, damaged.ljust(admin.strlen(content)))
        caller.send("GET", f"/v1/files/file-out-{batch}/content")
        run(witness, env, "doctor")
        admin.config_set("maxmemory", "1")
        upload = {"file": ("in.jsonl", line({"prompt": PROMPT}))}
        refused = [
            caller.send("POST", "/v1/files", data={"purpose": "batch"}, files=upload),
            caller.send("POST", "/v1/jobs", json={"prompt": PROMPT}),
            caller.send("POST", "/v1/images/generations", json={"prompt": PROMPT}),
            caller.send("POST", "/v1/images/edits", data={"prompt": PROMPT}, files={"image": ("a.png", png())}),
        ]  # fmt: skip
        run(witness, env, "doctor")
        admin.config_set("maxmemory", "0")
        assert {answer.status_code for answer in refused} == {503}


def run_commands(witness: Witness, env: dict[str, str], valkey: EmbeddedValkey, folder: Path) -> None:
    """An operator's commands and wrong settings."""
    (folder / "lines.jsonl").write_text(line({"prompt": PROMPT}) + "\n")
    (folder / "image.png").write_bytes(png())
    run(witness, env, "batch", str(folder / "lines.jsonl"), "-o", str(folder / "batch"))
    run(witness, env, "vary", str(folder / "image.png"), "-o", str(folder / "varied.png"))
    run(witness, env | {"FLUID_API_KEY": SECRETS["unknown key"]}, "vary", str(folder / "image.png"), "-o", "x.png")
    run(witness, env | {"FLUID_API_KEY": ALICE + "\n"}, "vary", str(folder / "image.png"), "-o", "x.png")
    run(witness, env, "dlq", "drop", "all")
    run(witness, env, "reload", "--to", "missing-checkpoint", "--timeout", "10")
    wrong = environment(valkey, SECRETS["wrong password of Redis"])
    for role in ("doctor", "worker", "serve"):
        assert "password" in run(witness, wrong, role)
    run_until(witness, wrong, "password", "gateway")
    for url in ("http://u:{}@h", "redis://u:{}@h:port/0", "redis://h/0?password={}&odd=1", "redis+sentinel://u:{}@h"):
        run(witness, env | {"FLUID_REDIS_URL": url.format(SECRETS["password of Redis"])}, "gateway")
    for keys in (
        ALICE,
        f"alice {ALICE}",
        f"alice {hash_key(ALICE)} {ALICE}",
        f"alice {hash_key(ALICE)} max_jobs={ALICE}",
    ):
        assert "FLUID_API_KEYS" in run(witness, env | {"FLUID_API_KEYS": keys}, "gateway")
        (folder / "keys.txt").write_text(keys)
        run(witness, env | {"FLUID_API_KEYS": "", "FLUID_API_KEYS_FILE": str(folder / "keys.txt")}, "gateway")
    run(witness, env | {"FLUID_WEBHOOK_SECRET": SECRETS["webhook secret"][6:]}, "gateway")
    run(witness, env | {f"FLUID_{ALICE}": "1"}, "doctor")


def test_no_planted_secret_or_prompt_is_in_any_text(
    witness: Witness, receiver: str, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    """A batch's file was in the log of a full Redis, a stored prompt in that of an unreadable record, and a key in the
    message about its line: libraries and our own messages quote what they cannot use."""
    env = environment(valkey, SECRETS["password of Redis"])
    log_file = tmp_path / "serve.log"
    with log_file.open("wb") as log:
        command = [sys.executable, "-m", "server.cli", "serve"]
        service = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    caller = Caller(f"http://127.0.0.1:{env['FLUID_PORT']}", witness)
    try:
        with FluidClient(str(caller.http.base_url), api_key=ALICE) as client:
            client.wait_ready(timeout_s=90)
        succeed_and_fail(caller, receiver)
        run_batches(caller)
        damage(valkey, env["FLUID_NAMESPACE"], caller, witness, env)
        run_commands(witness, env, valkey, tmp_path)
        until(lambda: "gave up" in log_file.read_text() and "attempt 1" in log_file.read_text(), what="the webhooks")
        for path in ("/metrics", "/health/ready", "/v1/models"):
            witness.texts.append((path, caller.http.get(path).text))
    finally:
        caller.http.close()
        subprocesses.stop(service, grace_s=60)
    witness.close()
    witness.texts.append(("log of serve", log_file.read_text()))
    witness.texts.append(("log of Valkey", valkey.log_path.read_text()))
    assert len(log_file.read_text().splitlines()) > 50 and "Traceback" in log_file.read_text()
    leaks = witness.found()
    assert not leaks, "\n".join(map(str, leaks[:20]))
