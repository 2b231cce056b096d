"""The `fluid` command as people type it."""

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import server
from server.cli.main import main
from server.errors import EngineBroken
from server.images.codec import read_metadata
from server.settings import describe


def fluid(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "200"} | env,
    )


@pytest.mark.parametrize("command", ["serve", "gateway", "worker", "generate", "demo"])
def test_every_command_has_help(command: str) -> None:
    """--help must work without torch, Redis or a checkpoint."""
    shown = fluid(command, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "usage: fluid" in shown.stdout
    assert command == "serve" or "example:" in shown.stdout


def test_serve_help_lists_every_setting() -> None:
    """A setting that help does not name does not exist for users."""
    shown = fluid("serve", "--help").stdout
    assert all(name in shown for name, _, _ in describe())


def test_generate_draws_without_a_server(tmp_path: Path) -> None:
    """In process, with the recipe in the file, numbered when there are several."""
    out = tmp_path / "sub" / "cat.webp"
    done = fluid("generate", "a cat", "--out", str(out), "--n", "2", "--seed", "5", FLUID_ENGINE="fake")
    assert done.returncode == 0, done.stderr
    recipes = [read_metadata((out.parent / f"cat-{i}.webp").read_bytes()) for i in range(2)]
    assert [r and r["seed"] for r in recipes] == [5, 6]


def test_demo_runs_the_whole_service(tmp_path: Path) -> None:
    """The first thing a newcomer runs: picture, seed, time per stage, clean end."""
    out = tmp_path / "demo.png"
    done = fluid("demo", "a cat", "--out", str(out), "--seed", "9", FLUID_ENGINE="fake")
    assert done.returncode == 0, done.stderr
    recipe = read_metadata(out.read_bytes())
    assert recipe is not None
    assert recipe["seed"] == 9
    said = [line for line in done.stderr.splitlines() if line.startswith("starting: ")]
    assert said[-1] == "starting: ready"
    assert len(said) == len(set(said)), "off a terminal a line is due only when something changed"
    for word in (str(out), "seed 9", "start-up", "queue", "inference", "encode", "total"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("args", "env", "says"),
    [
        (["generate", "x", "--temperature", "0"], {}, "temperature"),
        (["generate", "x", "--out", "x.gif"], {}, ".png, .webp or .jpg"),
        (["gateway"], {}, "FLUID_REDIS_URL"),
        (["worker"], {"FLUID_LEESE_S": "3"}, "Did you mean FLUID_LEASE_S"),
    ],
)
def test_mistakes_end_in_one_line_with_the_remedy(args: list[str], env: dict[str, str], says: str) -> None:
    """No traceback for what the user can fix."""
    done = fluid(*args, FLUID_ENGINE="fake", **env)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("fault", ["checkpoint", "config"])
def test_a_model_that_cannot_be_loaded_ends_with_its_reason(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A missing checkpoint and a missing text encoder are both for the user to mend: status 2, no traceback."""
    pytest.importorskip("torch")
    from model.checkpoint import CheckpointError
    from model.config import ConfigError

    def refuse(**_: object) -> None:
        raise {"checkpoint": CheckpointError, "config": ConfigError}[fault]("install the missing part")

    monkeypatch.setattr("model.inference.load.load_engine", refuse)
    assert main(["generate", "x", "--out", str(tmp_path / "x.png")]) == 2
    assert "install the missing part (FLUID_CHECKPOINT=" in capsys.readouterr().err


def test_an_impossible_request_is_one_line_without_a_server_too(tmp_path: Path) -> None:
    """The engine's refusal is the user's to read, in either way of drawing."""
    done = fluid("generate", "[impossible]", "--out", str(tmp_path / "x.png"), FLUID_ENGINE="fake")
    assert done.returncode == 2
    assert "cannot be drawn" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_engine_is_worth_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fluid serve` takes status 2 for a mistake that a restart cannot cure, and stopped everything."""

    async def broken(_: object) -> None:
        raise EngineBroken("the device is gone")

    monkeypatch.setattr("server.worker.main.serve", broken)
    assert main(["worker"]) == 1


def test_serve_ends_when_a_part_cannot_start(tmp_path: Path) -> None:
    """A port in use or a missing checkpoint must end with its reason, not in a restart loop."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = fluid("serve", "--port", port, "--data-dir", str(tmp_path), FLUID_ENGINE="fake")
    assert done.returncode == 2
    assert "gateway cannot start" in done.stderr


def test_the_gateway_needs_no_torch() -> None:
    """The gateway's image is small only while nothing it imports pulls in torch or the model."""
    program = "import sys, server.gateway, server.cli, server.client; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.split(".")[0] for name in modules.stdout.split()}
    assert not loaded & {"torch", "transformers", "triton", "model", "fluid_kernels"}


def test_only_the_worker_knows_the_model() -> None:
    """One seam between service and model, or neither can change alone."""
    users = set()
    for path in Path(str(server.__file__)).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ("model", "torch") for name in names):
                users.add(path.name)
    assert users == {"loader.py"}
