"""Planted secrets and a witness that looks for them in every text of a service, for test_secrets."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx

from server.cli.demo import free_port
from server.gateway.api_keys import hash_key
from server.launcher import subprocesses
from server.launcher.embedded_valkey import EmbeddedValkey
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE
from tests.server.harness import until

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


def run(witness: Witness, env: dict[str, str], *words: str) -> str:
    command = [sys.executable, "-m", "server.cli", *words]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        output = "".join((each or b"").decode() for each in (late.stdout, late.stderr))
    witness.texts.append((f"fluid {' '.join(words)}", output))
    return output


def run_until(witness: Witness, env: dict[str, str], told: str, role: str) -> None:
    """Run what does not end by itself until it has told something."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", "server.cli", role], env=env, stdout=log, stderr=log)

        def output() -> str:
            return os.pread(log.fileno(), 1 << 20, 0).decode()

        try:
            until(lambda: told in output(), what=f"{told!r} in the output of {role}")
        finally:
            subprocesses.stop(process, grace_s=10)
            witness.texts.append((f"fluid {role}", output()))


class Caller:
    """Sends requests and keeps every answer."""

    def __init__(self, base_url: str, witness: Witness) -> None:
        self.http = httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {ALICE}"})
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
