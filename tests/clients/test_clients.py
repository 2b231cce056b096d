"""Clients that people have, run for real with their defaults: each generates an image, and sends what bodies.json says.

Their versions are pinned in requirements.txt and package.json; bodies.json is what tests elsewhere use. After a change
of a version, `UPDATE_BODIES=1 make test-all ARGS="-k real_client"` writes it again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from server.gateway.api_keys import hash_key
from server.launcher.embedded_valkey import EmbeddedValkey
from tests.clients.bodies import BODIES, FILE, MAPPED
from tests.clients.environment import HERE, environment
from tests.clients.python_clients import KEY, png
from tests.clients.recorder import recording
from tests.server.conftest import fake_settings
from tests.server.harness import Service, running_service

CALLS = [
    *(
        ("python", name)
        for name in re.findall(r"^def (\w+)\(\) -> list", (HERE / "python_clients.py").read_text(), re.M)
    ),
    *(("node", name) for name in re.findall(r"^  (\w+): ", (HERE / "node_clients.mjs").read_text(), re.M)),
]


@pytest.fixture(scope="module")
def mapped(valkey: EmbeddedValkey) -> Iterator[Service]:
    """A service with API keys whose operator has mapped OpenAI's models and sizes: LangChain opens the `url` without
    the key."""
    settings = replace(fake_settings(valkey), api_keys=f"tester {hash_key(KEY)}", **MAPPED)  # type: ignore[arg-type]
    with running_service(settings) as running:
        yield running


def test_every_call_has_a_recorded_body() -> None:
    assert {language: set(calls) for language, calls in BODIES.items() if language != "open-webui"} == {
        language: {name for each, name in CALLS if each == language} for language in ("python", "node")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("language", "call"), CALLS)
def test_a_real_client_generates_an_image(language: str, call: str, mapped: Service, tmp_path: Path) -> None:
    """Bodies from memory had drifted from what the clients send."""
    command = environment().command(language, call)
    image = tmp_path / "square.png"
    image.write_bytes(png())
    with recording(mapped.settings.base_url) as kept:
        env = os.environ | {"FLUID_TEST_BASE_URL": f"{kept.url}/v1", "FLUID_TEST_IMAGE": str(image)}
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.stderr[-2000:], kept.answers)
    assert json.loads(done.stdout.splitlines()[-1]) == [[32, 32]]
    [sent] = kept.requests
    if os.environ.get("UPDATE_BODIES"):
        BODIES[language][call] = sent
        FILE.write_text(json.dumps(BODIES, indent=1) + "\n")
    assert sent == BODIES[language][call]
