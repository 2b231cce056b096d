"""`fluid serve` where something around it fails: its terminal, its disk, its Valkey."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import Popen

import httpx
import pytest

from server.background import stop_signals
from server.cli.demo import free_port
from server.client import FluidClient
from server.errors import ConfigError
from server.launcher import subprocesses
from server.launcher.embedded_valkey import START_TIMEOUT_S, find_binary
from server.launcher.supervisor import Supervisor
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE
from tests.server.harness import Hold, Service, child_env, fluid, until

pytestmark = pytest.mark.service
#: `fluid serve` with a script in place of the Valkey binary.
PROGRAM = """
import sys
from server.launcher import embedded_valkey
from server.cli.main import main
if sys.argv[1]:
    embedded_valkey.find_binary = lambda: sys.argv[1]
sys.exit(main(["serve", *sys.argv[2:]]))
"""


class Serve:
    """A `fluid serve` whose output is collected, or can be cut off."""

    def __init__(self, folder: Path, *, binary: str = "", fake_step_ms: float = 2.0) -> None:
        self.settings = Settings(
            data_dir=str(folder), port=free_port(), engine=FAKE_ENGINE, lease_s=1.0, fake_step_ms=fake_step_ms
        )
        self.process: Popen[str] = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, binary],
            env=child_env(self.settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.client = FluidClient(self.settings.base_url, max_retries=0)
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.output += line

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(timeout=60)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serve]]:
    made: list[Serve] = []

    def make(**options: object) -> Serve:
        made.append(Serve(tmp_path / "data", **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


def stub(tmp_path: Path, text: str) -> str:
    script = tmp_path / "valkey-stub"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def hangups() -> Iterator[None]:
    """Let processes that the test starts hear SIGHUP, even if the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGHUP])
def test_it_drains_after_its_terminal_has_gone(tmp_path: Path, hold: Hold, name: signal.Signals) -> None:
    """`fluid serve 2>&1 | tee log`: Ctrl-C ends tee too, and the supervisor died of BrokenPipe before it had stopped
    its children; SIGHUP stopped Valkey and worker at the same time. A request in flight must get its image."""
    settings = Settings(data_dir=str(tmp_path), port=free_port(), engine=FAKE_ENGINE, lease_s=1.0)
    read_end, write_end = os.pipe()
    words = [sys.executable, "-m", "server.cli", "serve"]
    process = subprocess.Popen(words, env=child_env(settings), stdout=write_end, stderr=write_end)
    os.close(write_end)
    images: list[object] = []
    client = FluidClient(settings.base_url, max_retries=0)
    request = threading.Thread(target=lambda: images.extend(client.generate(hold.prompt())))
    try:
        client.wait_ready(timeout_s=60)
        request.start()
        until(lambda: list(client.jobs(status="processing")), what="the job")
        os.close(read_end)  # now each write fails
        process.send_signal(name)
        if name == signal.SIGHUP:  # a shell sends it too
            process.send_signal(name)
        hold.release()
        request.join(timeout=60)
        assert process.wait(timeout=60) == 0
        assert len(images) == 1
    finally:
        subprocesses.stop(process, grace_s=30)
        client.close()


def test_a_valkey_that_cannot_start_leaves_a_gateway_that_says_so(tmp_path: Path, serve: Callable[..., Serve]) -> None:
    """A full disk ended `fluid serve` without its cause: the log lies on that disk. It must come back by itself."""
    full = tmp_path / "full"
    full.touch()
    message = "Can't open the append-only file: No space left on device"
    script = f'if [ -e "{full}" ]; then echo "{message}"; exit 1; fi\nexec "{find_binary()}" "$@"'
    service = serve(binary=stub(tmp_path, script))
    until(lambda: "embedded Valkey" in service.client.ready()[1], what="the gateway's reason")
    response = httpx.post(f"{service.settings.base_url}/v1/jobs", json={"prompt": "a cat"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "queue_unavailable"
    assert "embedded Valkey is not running" in response.json()["error"]["message"]
    until(lambda: message in service.output, what="the last lines of its log")
    full.unlink()
    service.client.wait_ready(timeout_s=60)
    assert service.client.generate("a cat", quality="low")
    service.process.terminate()
    assert service.process.wait(timeout=60) == 0


def test_signals_are_heard_while_valkey_loads_its_data(tmp_path: Path, serve: Callable[..., Serve]) -> None:
    """A long append-only file held up SIGTERM for 41 s, and ended the service after 30 s."""
    service = serve(binary=stub(tmp_path, "exec sleep 600"))
    until((tmp_path / "data" / "address").exists, what="the start of Valkey")
    time.sleep(0.5)
    assert service.process.poll() is None
    service.process.terminate()
    assert service.process.wait(timeout=START_TIMEOUT_S - 5) == 0


def test_a_folder_that_cannot_be_written_is_told_with_the_remedy(tmp_path: Path) -> None:
    """A read-only root, or a home that does not exist: it was a traceback."""
    (tmp_path / "file").touch()
    done = fluid(Settings(data_dir=str(tmp_path / "file" / "data"), engine=FAKE_ENGINE, port=free_port()), "serve")
    assert done.returncode == 2
    assert "FLUID_DATA_DIR" in done.stderr and "Traceback" not in done.stderr


def test_no_home_is_told_with_the_remedy() -> None:
    """A container's user often has none; `serve` and `doctor` ended in a traceback."""
    program = "import os, sys; del os.environ['HOME']; import pwd; pwd.getpwuid = lambda _: {}['no such user']\n"
    program += "from server.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for command in ("serve", "doctor"):
        env = {name: text for name, text in os.environ.items() if name != "XDG_DATA_HOME"} | {"HOME": "/"}
        words = [sys.executable, "-c", program, command]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, done.stderr
        assert "FLUID_DATA_DIR" in done.stderr and "Traceback" not in done.stderr


def test_serve_without_torch_ends_with_the_remedy(tmp_path: Path) -> None:
    """The worker ended in a traceback, and was restarted for ever."""
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    settings = Settings(data_dir=str(tmp_path / "data"), port=free_port())
    for words in (["serve"], ["generate", "a cat", "--out", str(tmp_path / "x.png")]):
        done = subprocess.run(
            [sys.executable, "-m", "server.cli", *words],
            env=child_env(settings) | {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2, done.stderr
        assert "pip install" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.usefixtures("hangups")
def test_gateway_and_worker_finish_their_work_at_sighup(new_service: Callable[..., Service], hold: Hold) -> None:
    """Started by hand in a terminal that is closed, both were killed in the middle of an image."""
    service = new_service()
    images: list[object] = []
    request = threading.Thread(target=lambda: images.extend(service.client.generate(hold.prompt())))
    request.start()
    until(lambda: list(service.client.jobs(status="processing")), what="the job")
    for process in (service.workers[0], service.gateway):
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
    hold.release()
    request.join(timeout=60)
    assert len(images) == 1
    assert service.workers[0].wait(timeout=60) == 0


@pytest.mark.usefixtures("hangups")
def test_nohup_keeps_its_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup fluid serve &` must outlive the terminal."""
    assert signal.SIGHUP in stop_signals()
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)
    assert stop_signals() == [signal.SIGTERM, signal.SIGINT]


def test_the_embedded_valkey_has_no_replicas_to_wait_for(tmp_path: Path) -> None:
    """Every request would get 503 not_replicated."""
    with pytest.raises(ConfigError, match="FLUID_REDIS_URL"):
        asyncio.run(Supervisor(Settings(data_dir=str(tmp_path), replicas=1)).run())


@pytest.mark.slow
def test_a_start_with_another_checkpoint_forgets_the_model_of_the_last(tmp_path: Path) -> None:
    """It stayed in the list of models for good. One that a job waits for stays."""
    settings = Settings(data_dir=str(tmp_path), port=free_port(), engine=FAKE_ENGINE, drain_s=0.5)
    for checkpoint, listed in (("fake-a", "fake-a"), ("fake-b", "fake-b"), ("fake-c", "fake-b fake-c")):
        own = replace(settings, checkpoint=checkpoint)
        process = subprocess.Popen([sys.executable, "-m", "server.cli", "serve", "--quiet"], env=child_env(own))
        try:
            with FluidClient(settings.base_url) as client:
                until(lambda c=client, m=checkpoint: c.health().get("models", {}).get(m), what=checkpoint)
                until(lambda c=client, w=listed: " ".join(sorted(m["id"] for m in c.models())) == w, what=listed)
                if checkpoint == "fake-b":
                    client.submit("a cat", num_inference_steps=20000)  # 40 s
        finally:
            process.terminate()
            process.wait(timeout=60)
