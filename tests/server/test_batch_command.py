"""`fluid batch` as people use it: text files, JSON lines, interrupted and gone on with."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Service, child_env, fluid, until
from PIL import Image

from server.batch_command import _safe, read_prompts
from server.errors import BatchRefused


def test_a_text_file_becomes_pictures(service: Service, tmp_path: Path) -> None:
    """One prompt a line, and what failed is told."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a cat\n\na dog\n[raise]\n")
    done = fluid(service.settings, "batch", str(prompts), "-o", str(out), "--quality", "low", "--output-format", "webp")
    assert done.returncode == 0, done.stderr
    assert "completed: 2 pictures" in done.stdout and "1 lines failed" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["00001.webp", "00002.webp", "batch.json", "errors.jsonl"]
    assert Image.open(io.BytesIO((out / "00002.webp").read_bytes())).size == (32, 32)
    assert json.loads((out / "errors.jsonl").read_text())["custom_id"] == "00003"
    prompts.write_text("another\n")
    refused = fluid(service.settings, "batch", str(prompts), "-o", str(out))
    assert refused.returncode == 1 and "belongs to another batch" in refused.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Shells start what runs in the background with Ctrl-C ignored, and children inherit that: there the command was
    never interrupted, and the test failed."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_batch_goes_on(new_service: Callable[..., Service], tmp_path: Path) -> None:
    """Ctrl-C and the same command again: the same batch, every picture once."""
    service = new_service(fake_step_ms=10.0, max_rows=2)
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    lines = [{"prompt": "a cat", "seed": i, "num_inference_steps": 10, "n": 2} for i in range(0, 60, 2)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, "-m", "server.cli", "batch", str(prompts), "-o", str(out)]
    first = subprocess.Popen(command, env=child_env(service.settings), stderr=subprocess.DEVNULL)
    state = out / "batch.json"
    until(lambda: state.exists() and state.read_text().endswith("}"))
    batch_id = json.loads(state.read_text())["batch_id"]
    until(lambda: service.client.batch(batch_id)["request_counts"]["completed"] >= 2)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=20) == 130
    again = fluid(service.settings, "batch", str(prompts), "-o", str(out))
    assert again.returncode == 0 and "60 pictures" in again.stdout, again.stderr
    pictures = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert len(pictures) == 60
    assert pictures["00003-1.png"] == service.client.generate("a cat", seed=5, num_inference_steps=10)[0].data
    text = service.client._call("GET", "/metrics").text
    assert 'fluid_jobs_submitted_total{kind="batch"} 30.0' in text


@pytest.mark.parametrize(("name", "text", "says"), [
    ("a.jsonl", "a cat", "line 1 is not JSON"),
    ("a.jsonl", '["x"]', "must be an object"),
    ("a.txt", " \n", "0 lines"),
])  # fmt: skip
def test_a_wrong_file_says_where(tmp_path: Path, name: str, text: str, says: str) -> None:
    """Before anything is sent."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BatchRefused, match=says):
        list(read_prompts(path, {}))


def test_no_custom_id_leads_out_of_the_folder() -> None:
    """../../.ssh/authorized_keys is a valid custom_id."""
    names = {_safe(name) for name in ("../../x", "..\\..\\x", "a/b", "a_b", ".hidden", "日本", "日木")}
    assert len(names) == 7 and not any("/" in name or name.startswith(".") for name in names)
