"""`fluid batch`: input files, output files, resuming and canceling."""

import hashlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from server.cli.batch import _download, _file_name, _save_errors, _start_or_resume, read_prompts
from server.client import FluidClient
from server.errors import BatchRefused, ServiceError
from tests.server.harness import Hold, Service, child_env, fluid, until


def test_a_text_file_becomes_images(service: Service, tmp_path: Path) -> None:
    """One prompt per line; failed lines are listed in errors.jsonl and in the exit status."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a cat\n\na dog\n[raise]\n")
    done = fluid(service.settings, "batch", str(prompts), "-o", str(out), "--quality", "low", "--output-format", "webp")
    assert done.returncode == 1 and "1 of 3 lines produced no image" in done.stderr
    assert "completed: 2 images" in done.stdout and "1 lines failed" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "00001.webp", "00002.webp", "batch.json", "errors.jsonl", "warnings.jsonl",
    ]  # fmt: skip
    assert Image.open(io.BytesIO((out / "00002.webp").read_bytes())).size == (32, 32)
    assert json.loads((out / "errors.jsonl").read_text())["custom_id"] == "00003"
    prompts.write_text("another\n")
    refused = fluid(service.settings, "batch", str(prompts), "-o", str(out))
    assert refused.returncode == 1 and "belongs to another batch" in refused.stderr


def test_warnings_of_lines_are_told(service: Service, tmp_path: Path) -> None:
    """Only the results had them: a file of words that the model does not know was a plain success."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text('{"prompt": "a cat"}\n{"prompt": "a cat", "quality": "hd"}\n')
    done = fluid(service.settings, "batch", str(prompts), "-o", str(out))
    assert done.returncode == 0 and "completed: 2 images" in done.stdout
    assert "1 line has warnings" in done.stderr and "00002: 'quality' hd is high here." in done.stderr
    [line] = (out / "warnings.jsonl").read_text().splitlines()
    assert json.loads(line) == {"custom_id": "00002", "warnings": ["'quality' hd is high here."]}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Restore the default SIGINT: shells start background jobs with it ignored, and child processes inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_batch_resumes(new_service: Callable[..., Service], hold: Hold, tmp_path: Path) -> None:
    """Ctrl-C and the same command again: the same batch, every image once."""
    service = new_service(max_rows=4)
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    lines = [{"prompt": "a cat", "seed": i, "num_inference_steps": 10, "n": 2} for i in range(0, 60, 2)]
    lines[-1]["prompt"] = hold.prompt()  # it cannot end before the interruption
    prompts.write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, "-m", "server.cli", "batch", str(prompts), "-o", str(out)]
    first = subprocess.Popen(command, env=child_env(service.settings), stderr=subprocess.DEVNULL)
    state = out / "batch.json"
    until(lambda: state.exists() and "batch_id" in state.read_text())
    batch_id = json.loads(state.read_text())["batch_id"]
    until(lambda: service.client.batch(batch_id)["request_counts"]["completed"] >= 2)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130
    hold.release()
    again = fluid(service.settings, "batch", str(prompts), "-o", str(out))
    assert again.returncode == 0 and "60 images" in again.stdout, again.stderr
    images = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert len(images) == 60
    assert images["00003-1.png"] == service.client.generate("a cat", seed=5, num_inference_steps=10)[0].data
    metrics = httpx.get(f"{service.settings.base_url}/metrics").text
    assert 'fluid_jobs_submitted_total{kind="batch"} 30.0' in metrics


class KilledAtStart(FluidClient):
    """A client whose process ends while a batch starts: before the request is sent, or once it was answered."""

    before = True

    def start_batch(self, file_id: str, key: str = "") -> dict[str, Any]:
        if self.before:
            raise KeyboardInterrupt
        super().start_batch(file_id, key)
        raise KeyboardInterrupt


@pytest.mark.parametrize("before", [True, False])
def test_a_batch_that_was_killed_while_starting_starts_once(
    new_service: Callable[..., Service], tmp_path: Path, before: bool
) -> None:
    """The state was written after the start: killed in between, the same command generated everything twice."""
    service = new_service(workers=0)
    until(lambda: service.client.ready()[1].startswith("no live"), what="the gateway")
    lines, prompts, out = b'{"custom_id": "1", "body": {"prompt": "a cat"}}', tmp_path / "prompts.txt", tmp_path / "out"
    with KilledAtStart(service.settings.base_url) as client:
        client.before = before
        with pytest.raises(KeyboardInterrupt):
            _start_or_resume(client, lines, prompts, out)
    with FluidClient(service.settings.base_url) as client:
        first = _start_or_resume(client, lines, prompts, out)
        assert _start_or_resume(client, lines, prompts, out) == first
    listed = httpx.get(f"{service.settings.base_url}/v1/batches").json()["data"]
    assert [batch["id"] for batch in listed] == [first]


def test_a_batch_whose_file_expired_before_its_start_is_uploaded_again(service: Service, tmp_path: Path) -> None:
    lines, out = b'{"custom_id": "1", "body": {"prompt": "a cat"}}', tmp_path / "out"
    state = {"sha256": hashlib.sha256(lines).hexdigest(), "file_id": "file-0123456789abcdef01234567", "key": "k"}
    out.mkdir()
    (out / "batch.json").write_text(json.dumps(state))
    assert service.client.batch(_start_or_resume(service.client, lines, tmp_path / "prompts.txt", out))["id"]


@pytest.mark.parametrize(
    ("status", "kept"), [(400, False), (422, False), (401, True), (429, True), (502, True), (503, True), (0, True)]
)
def test_only_a_refusal_frees_the_folder(service: Service, tmp_path: Path, status: int, kept: bool) -> None:
    """A 502 or a 503 not_replicated forgot the key, although the batch may have started: the next run began another."""

    class Troubled(FluidClient):
        def start_batch(self, file_id: str, key: str = "") -> dict[str, Any]:
            super().start_batch(file_id, key)
            raise ServiceError("trouble on the way back", status=status)

    lines, prompts, out = b'{"custom_id": "1", "body": {"prompt": "a cat"}}', tmp_path / "prompts.txt", tmp_path / "out"
    with Troubled(service.settings.base_url) as client:
        for _ in range(2):  # the second is a resumption, if the state was kept
            with pytest.raises(ServiceError):
                _start_or_resume(client, lines, prompts, out)
            assert (out / "batch.json").exists() is kept


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.jsonl", "a cat", "line 1 is not JSON"),
    ("a.jsonl", '["x"]', "must be an object"),
    ("a.txt", " \n", "0 lines"),
    ("a.jsonl", '{"prompt": "a"}\n\n\n\nx', "line 5 is not JSON"),
    ("a.jsonl", '{"body": 1}', "line 1: 'body'"),
])  # fmt: skip
def test_an_invalid_file_is_rejected_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    """It is rejected before anything is sent. Blank lines count: line 5 was once reported as line 2."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BatchRefused, match=message):
        list(read_prompts(path, {}))


def test_file_names_stay_inside_the_folder() -> None:
    """../../.ssh/authorized_keys is a valid custom_id."""
    names = {_file_name(name) for name in ("../../x", "..\\..\\x", "a/b", "a_b", ".hidden", "日本", "日木")}
    assert len(names) == 7 and not any("/" in name or name.startswith(".") for name in names)


def test_prompts_end_at_line_feeds_only(tmp_path: Path) -> None:
    """U+2028 and U+0085 once split a prompt in two."""
    path = tmp_path / "a.txt"
    path.write_bytes("a\u2028b\x85c\r\n\nd".encode())
    lines = [(number, line["custom_id"], line["body"]["prompt"]) for number, line in read_prompts(path, {})]
    assert lines == [(1, "00001", "a\u2028b\x85c"), (3, "00002", "d")]


def test_every_image_has_its_own_file(service: Service, tmp_path: Path) -> None:
    """The first of two images of line "a" once had the name of line "a-0", so one was dropped and still counted.

    The service's errors name the line of the file.
    """
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    lines = [
        {"custom_id": f"a{s}", "body": {"prompt": "a cat", "seed": i, "n": 2 - i}} for i, s in enumerate(("", "-0"))
    ]
    prompts.write_text("\n\n".join(map(json.dumps, lines)))
    done = fluid(service.settings, "batch", str(prompts), "-o", str(out), "--quality", "low")
    assert done.returncode == 0 and "3 images" in done.stdout, done.stderr
    names = sorted(path.name for path in out.glob("*.png"))
    assert len(names) == 3 and names[0].startswith("a-0-") and names[1:] == ["a-0.png", "a-1.png"]
    prompts.write_text("\n\n".join(map(json.dumps, lines[:1] * 2)))
    twice = fluid(service.settings, "batch", str(prompts), "-o", str(tmp_path / "other"))
    assert twice.returncode == 1 and "Line 3: custom_id 'a' was used before" in twice.stderr


def test_an_unwritable_folder_is_rejected(service: Service, tmp_path: Path) -> None:
    """This used to be a traceback."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    done = fluid(service.settings, "batch", str(prompts), "-o", str(prompts / "out"))
    assert done.returncode == 1 and "cannot write to" in done.stderr and "Traceback" not in done.stderr


def test_a_canceled_batch_fails_unless_canceled_here(new_service: Callable[..., Service], tmp_path: Path) -> None:
    """A script that checks the exit status would continue with half of the images; with --cancel that was intended."""
    service = new_service(workers=0)
    until(lambda: service.client.ready()[1].startswith("no live"), what="the gateway")
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a cat\n")
    elsewhere = fluid(service.settings, "batch", str(prompts), "-o", str(tmp_path / "uot"), "--cancel")
    assert elsewhere.returncode == 1 and "holds no batch to cancel" in elsewhere.stderr, (
        "it started one, and canceled it"
    )
    command = [sys.executable, "-m", "server.cli", "batch", str(prompts), "-o", str(out)]
    running = subprocess.Popen(command, env=child_env(service.settings), stderr=subprocess.DEVNULL)
    state = out / "batch.json"
    until(lambda: state.exists() and "batch_id" in state.read_text())
    running.kill()
    running.wait()
    asked = fluid(service.settings, "batch", str(prompts), "-o", str(out), "--cancel")
    assert asked.returncode == 0 and "cancelled: 0 images" in asked.stdout, asked.stderr
    done = fluid(service.settings, "batch", str(prompts), "-o", str(out))
    assert done.returncode == 1 and "the batch is cancelled; 1 of 1 lines produced no image" in done.stderr


def test_lines_whose_images_are_gone_are_failures(tmp_path: Path) -> None:
    """They are in the output file without images: a KeyError. One that was saved in time is not lost."""
    expired = {"error": {"message": "The image has expired.", "code": "job_expired"}}

    class Gone(FluidClient):
        def batch_results(self, batch_id: str, *, errors: bool = False) -> Iterator[dict[str, Any]]:  # type: ignore[override]
            for name in () if errors else ("a", "b"):
                yield {"custom_id": name, "response": {"status_code": 410, "body": expired}}

    (tmp_path / "a.png").write_bytes(b"x")
    with Gone("http://127.0.0.1:9") as client:
        found = _download(client, "batch_1", tmp_path, {"a", "b"})
        assert (found.images, [line["custom_id"] for line in found.gone]) == (0, ["b"])
        assert _save_errors(client, "batch_1", tmp_path, found.gone) == 1
    assert "The image has expired." in (tmp_path / "errors.jsonl").read_text()


@pytest.mark.parametrize("content", [b"[1]", b"\xff", b"{}", b"3", b'{"batch_id": "x"'])
def test_a_foreign_state_file_is_refused(service: Service, tmp_path: Path, content: bytes) -> None:
    """An unrelated batch.json in the folder was a traceback."""
    (tmp_path / "batch.json").write_bytes(content)
    with pytest.raises(BatchRefused, match=r"batch\.json is not a state of this command; choose another folder"):
        _start_or_resume(service.client, b"{}", tmp_path / "prompts.txt", tmp_path)
