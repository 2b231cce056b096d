"""No planted secret or prompt is in any log, error, report, metric or process argument of a whole service."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
import redis

from server.cli.demo import free_port
from server.client import FluidClient
from server.gateway.api_keys import hash_key
from server.launcher import subprocesses
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.keys import Keys
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE
from tests.clients.python_clients import png
from tests.server.harness import http_server, until

pytestmark = pytest.mark.slow
PROMPT = "a-very-private-prompt"
HAS_OTEL = importlib.util.find_spec("opentelemetry.exporter") is not None
#: What must be in no text at all. Each says where it was planted.
SECRETS = {
    "password of Redis": "plantedRedisPassw0rd/with?marks",
    "wrong password of Redis": "plantedWrongPassw0rd",
    "key of alice": "fs_plantedKeyOfAlice",
    "key of bob": "fs_plantedKeyOfBob",
    "unknown key": "fs_plantedUnknownKey",
    "webhook secret": "whsec_" + base64.b64encode(b"planted webhook secret, 32 bytes").decode(),
    "token of a hub": "hf_plantedTokenOfTheHub",
    "cloud key": "plantedCloudSecretKey",
    "token in a webhook's URL": "plantedTokenInTheUrl",
    "password of a collector": "plantedCollectorPassw0rd",
    "token of a collector": "plantedCollectorToken",
}
ALICE, BOB, URL_TOKEN = SECRETS["key of alice"], SECRETS["key of bob"], SECRETS["token in a webhook's URL"]


class Witness:
    """Collects every text of the run, and the arguments of all processes while it lasts."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []  #: (where, text) that may hold neither secrets nor prompts
        self.answers: list[tuple[str, str]] = []  #: answers to the owner of a prompt, which may hold it
        self._done = threading.Event()
        self._arguments: set[str] = set()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self._arguments.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:  # it has ended
                    continue

    def close(self) -> None:
        self._done.set()
        self._watcher.join()
        self.texts += [("process arguments", text) for text in self._arguments]

    def found(self) -> list[tuple[str, str, str]]:
        leaks = []
        for where, text in [*self.texts, *self.answers]:
            for name, secret in SECRETS.items():
                if secret == URL_TOKEN and (where, text) in self.answers:
                    continue  # the job object shows its owner the webhook
                if secret in text or json.dumps(secret)[1:-1] in text:
                    leaks.append((where, name, line_of(text, secret)))
        for where, text in self.texts:
            if PROMPT in text:
                leaks.append((where, "prompt", line_of(text, PROMPT)))
        return leaks


def line_of(text: str, part: str) -> str:
    return next((line[:300] for line in text.splitlines() if part in line), text[:300])


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


def environment(valkey: EmbeddedValkey, password: str, **changes: str) -> dict[str, str]:
    quoted = password.replace("/", "%2F").replace("?", "%3F")
    settings = Settings(
        redis_url=valkey.url.replace("unix://", f"unix://fluid:{quoted}@"),
        namespace=uuid.uuid4().hex,
        engine=FAKE_ENGINE,
        lease_s=1.0,
        port=free_port(),
        log_level="debug",
        max_attempts=2,
        api_keys=f"alice {hash_key(ALICE)};bob {hash_key(BOB)} rate_limit=2",
        api_key=ALICE,
        webhook_secret=SECRETS["webhook secret"],
        webhook_private="allow",
        traces_url=f"http://me:{SECRETS['password of a collector']}@127.0.0.1:9/v1/traces"
        if HAS_OTEL
        else "",  # refused
        traces_ratio=1.0,
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLUID_")}
    others = {
        "HF_TOKEN": SECRETS["token of a hub"],
        "AWS_SECRET_ACCESS_KEY": SECRETS["cloud key"],
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{SECRETS['token of a collector']}",
    }
    return clean | others | settings.to_env() | changes


def run(witness: Witness, env: dict[str, str], *words: str, limit_s: float = 60) -> str:
    command = [sys.executable, "-m", "server.cli", *words]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit_s)
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        output = "".join((each or b"").decode() for each in (late.stdout, late.stderr))
    witness.texts.append((f"fluid {' '.join(words)}", output))
    return output


def line(body: dict[str, object], number: int = 0) -> str:
    return json.dumps({"custom_id": f"l{number}", "method": "POST", "url": "/v1/images/generations", "body": body})


class Caller:
    """Sends requests and keeps every answer."""

    def __init__(self, base_url: str, witness: Witness) -> None:
        self.http = httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {ALICE}"}, timeout=60)
        self._witness = witness

    def send(self, method: str, path: str, **options: object) -> httpx.Response:
        answer = self.http.request(method, path, **options)  # type: ignore[arg-type]
        text = f"{answer.status_code} {answer.headers} {answer.text}"
        self._witness.answers.append((f"{method} {path}", text))
        return answer

    def batch(self, text: str) -> str:
        form = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", text)}}
        file = self.send("POST", "/v1/files", **form).json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/images/generations", "completion_window": "24h"}
        return str(self.send("POST", "/v1/batches", json=body).json()["id"])

    def over(self, batch: str) -> Callable[[], bool]:
        return lambda: self.send("GET", f"/v1/batches/{batch}").json()["status"] in ("completed", "failed")


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
        until(caller.over(batch), seconds=60, what="the batch")
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
        until(caller.over(batch), seconds=60, what="the batch")
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
    for role in ("doctor", "worker", "gateway", "serve"):
        assert "password" in run(witness, wrong, role, limit_s=8 if role == "gateway" else 60)
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
