"""The `fluid` command as a user types it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli.demo import free_port
from server.cli.main import COMMANDS, Secrets, main
from server.errors import EngineBroken
from server.images.codec import read_metadata
from server.launcher import subprocesses
from server.launcher.embedded_valkey import EmbeddedValkey
from server.settings import Settings, describe
from server.worker.engine.fake import FAKE_ENGINE
from tests.server.harness import start, status_of, until


def fluid(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *args],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "200"} | env,
    )


ACTIONS = ["dlq list", "dlq show", "dlq replay", "dlq drop", "keys new"]


@pytest.mark.parametrize("command", [*COMMANDS, *ACTIONS])
def test_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The fastest way to learn a command is a line to copy."""
    with pytest.raises(SystemExit) as exited:
        main([*command.split(), "--help"])
    assert exited.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: fluid {command}" in shown
    _, _, examples = shown.partition("\nexample")
    assert f"fluid {command}" in examples


def test_help_lists_every_command() -> None:
    """It runs in a separate process: --help must work without torch, Redis or a checkpoint."""
    shown = fluid("--help")
    assert shown.returncode == 0, shown.stderr
    assert all(f"\n    {command} " in shown.stdout for command in COMMANDS)


def test_a_command_imports_only_its_own_module() -> None:
    """Each worker process would pay half a second and 30 MB for FastAPI and the rest."""
    program = "import sys; from server.cli import main; main._parser(['worker']); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not {"fastapi", "httpx", "redis", "PIL"} & set(shown.stdout.split())


def test_serve_help_lists_every_setting() -> None:
    """Users look for settings in --help first."""
    shown = fluid("serve", "--help").stdout
    assert all(name in shown for name, _, _ in describe())


def test_generate_writes_numbered_files_with_recipes(tmp_path: Path) -> None:
    """This needs no server: the folder is created, and image i has seed + i in its recipe."""
    out = tmp_path / "sub" / "cat.webp"
    done = fluid("generate", "a cat", "--out", str(out), "--n", "2", "--seed", "5", FLUID_ENGINE=FAKE_ENGINE)
    assert done.returncode == 0, done.stderr
    recipes = [read_metadata((out.parent / f"cat-{i}.webp").read_bytes()) for i in range(2)]
    assert [r and r["seed"] for r in recipes] == [5, 6]


def test_demo_runs_the_whole_service(tmp_path: Path) -> None:
    """The first command a newcomer runs: an image, its seed, the time of each stage, a clean exit."""
    out = tmp_path / "demo.png"
    done = fluid("demo", "a cat", "--out", str(out), "--seed", "9", FLUID_ENGINE=FAKE_ENGINE)
    assert done.returncode == 0, done.stderr
    recipe = read_metadata(out.read_bytes())
    assert recipe is not None
    assert recipe["seed"] == 9
    status = [line for line in done.stderr.splitlines() if line.startswith("service: ")]
    assert status[-1] == "service: ready"
    assert len(status) == len(set(status)), "off a terminal, a line is printed only when the text changes"
    for word in (str(out), "seed 9", "start-up", "queue", "inference", "encode", "total"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("args", "env", "message"),
    [
        (["generate", "x", "--temperature", "0"], {}, "temperature"),
        (["generate", "x", "--out", "x.gif"], {}, ".png, .webp or .jpg"),
        (["generate", "x", "--background", "transparent"], {}, "fake generates no alpha: ask for --background opaque"),
        (
            ["generate", "x", "--background", "transparent", "--out", "x.jpg"],
            {},
            "--out x.jpg: jpeg has no transparency",
        ),
        (["edit", "x.png", "x", "--background", "transparent", "-o", "x.jpeg"], {}, "ends in .png or .webp"),
        (["vary", "x.png", "--background", "transparent", "-o", "x.jpg"], {}, "or --background opaque"),
        (["generate", "x", "--out", "tests"], {}, "--out tests is a folder: name a file in it"),
        (["generate", "x", "--out", "README.md/x.png"], {}, "no file can be written"),
        (["serve", "--max-workers", "8"], {}, "--max-workers is for --on ray: here the number of workers is --workers"),
        (["gateway"], {}, "FLUID_REDIS_URL"),
        (["worker"], {"FLUID_LEASE_S": "inf"}, "FLUID_LEASE_S='inf' must be finite"),
        (["worker"], {"FLUID_LEESE_S": "3"}, "Did you mean FLUID_LEASE_S"),
    ],
)
def test_user_errors_name_the_remedy_without_a_traceback(args: list[str], env: dict[str, str], message: str) -> None:
    """A traceback reads like a bug, and hides what the user can fix."""
    done = fluid(*args, FLUID_ENGINE=FAKE_ENGINE, **env)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["dlq list", "reload", "forget fake"])
def test_a_queue_that_does_not_answer_is_named_without_a_traceback(command: str) -> None:
    """Only `doctor` told what was wrong, and what to do."""
    done = fluid(*command.split(), FLUID_REDIS_URL="redis://:hidden@127.0.0.1:1")
    assert done.returncode == 1 and "the queue at redis://" in done.stderr and "does not answer" in done.stderr
    assert "Traceback" not in done.stderr and "hidden" not in done.stderr


def test_output_that_is_lost_is_a_failure() -> None:
    """A new key whose line did not fit on the disk was lost, with exit status 0."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "server.cli", "keys", "new", "alice"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1 and "No space left" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("fault", ["checkpoint", "config"])
def test_an_unloadable_model_exits_with_its_reason(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A missing checkpoint and a missing text encoder are both for the user to fix: status 2, no traceback."""
    pytest.importorskip("torch")
    from model.checkpoint import CheckpointError
    from model.config import ConfigError

    def refuse(**_: object) -> None:
        raise {"checkpoint": CheckpointError, "config": ConfigError}[fault]("install the missing part")

    monkeypatch.setattr("model.inference.load.load_engine", refuse)
    assert main(["generate", "x", "--out", str(tmp_path / "x.png")]) == 2
    assert "install the missing part (FLUID_CHECKPOINT=" in capsys.readouterr().err


def test_generate_reports_a_request_that_the_engine_rejects(tmp_path: Path) -> None:
    """The message is the engine's own, as the service would return it."""
    done = fluid("generate", "[impossible]", "--out", str(tmp_path / "x.png"), FLUID_ENGINE=FAKE_ENGINE)
    assert done.returncode == 2
    assert "told that this is impossible" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_engine_exits_with_a_status_that_restarts_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """On status 2, `fluid serve` stops everything: it means an error that a restart cannot fix."""

    async def broken(_: object) -> None:
        raise EngineBroken("the device is gone")

    monkeypatch.setattr("server.worker.main.serve", broken)
    assert main(["worker"]) == 1


def test_serve_exits_when_the_gateway_cannot_start(tmp_path: Path) -> None:
    """A port in use must be reported once, not in a restart loop."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = fluid("serve", "--port", port, "--data-dir", str(tmp_path), FLUID_ENGINE=FAKE_ENGINE)
    assert done.returncode == 2
    assert "gateway cannot start" in done.stderr


def test_service_links_are_logged_once_and_ignored() -> None:
    """They belong to a Service named fluid; every command ended with status 2."""
    links = {"FLUID_PORT": "tcp://10.0.0.7:8000", "FLUID_SERVICE_HOST": "10.0.0.7"}
    done = fluid("keys", "new", "alice", **links)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Kubernetes") == 1 and "FLUID_PORT, FLUID_SERVICE_HOST" in done.stderr


def test_demo_works_behind_a_proxy_and_with_empty_settings(tmp_path: Path) -> None:
    """The requests to one's own service went to the proxy, and it never became ready. And with FLUID_REDIS_URL set, its
    worker took the jobs of the service there."""
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    empty = dict.fromkeys(("FLUID_HOST", "FLUID_PORT", "FLUID_MAX_ROWS", "FLUID_LOG_LEVEL"), "")
    empty |= {"FLUID_REDIS_URL": "redis://127.0.0.1:1", "FLUID_API_KEYS_FILE": "/nowhere", "FLUID_MAX_JOBS": "1"}
    empty |= {"FLUID_DEFAULT_MODEL": "another", "FLUID_RESULTS": "file:///nowhere"}
    out = tmp_path / "demo.png"
    done = fluid("demo", "a cat", "--out", str(out), FLUID_ENGINE=FAKE_ENGINE, **proxy, **empty)
    assert done.returncode == 0, done.stderr
    assert out.exists()


def test_the_gateway_listens_on_ipv6(valkey: EmbeddedValkey) -> None:
    """FLUID_HOST=::1 listened, but its own base URL could not be read."""
    settings = Settings(redis_url=valkey.url, host="::1", port=free_port())
    gateway = start("gateway", settings)
    try:
        until(lambda: status_of(f"{settings.base_url}/health/live") == 200, what="the gateway on ::1")
    finally:
        subprocesses.stop(gateway, grace_s=10)


def test_secrets_of_the_environment_are_hidden() -> None:
    """Whatever a library quotes: its message may hold the URL with the password, or a token."""
    secrets = Secrets(
        {
            "FLUID_REDIS_URL": "redis+sentinel://me:p%40ssword1@a,b/main?sentinel_password=sentinelPassword",
            "HF_TOKEN": "hf_0123456789",
            "FLUID_API_KEY": "fs_abcdefgh",
            "FLUID_API_KEYS_FILE": "/etc/fluid/keys.txt",
            "MY_PASSWORD": "short",
            "FLUID_TRACES_URL": "https://me:collectorPassword@c/v1/traces",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abcdef",
        }
    )
    text = secrets.hide(
        "sentinelPassword, p%40ssword1, p@ssword1, hf_0123456789, fs_abcdefgh, /etc/fluid/keys.txt, short, "
        "collectorPassword, authorization=Bearer%20abcdef"
    )
    assert text == "***, ***, ***, ***, ***, /etc/fluid/keys.txt, short, ***, ***"
