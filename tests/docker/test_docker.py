"""Dockerfile and compose files: every name in them must exist in this project.

No image is built, which would need a Docker daemon; the files are compared with the code instead.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.cli import main
from server.gateway.app import create_app
from server.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def instructions() -> list[tuple[str, str, str]]:
    """Parse the Dockerfile into (stage, instruction, argument)."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    found, stage = [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, argument = line.partition(" ")
        if name == "FROM":
            stage = argument.split(" AS ")[1]
        found.append((stage, name, " ".join(argument.split())))
    return found


def arguments(name: str, stage: str | None = None) -> list[str]:
    """Return the arguments of every instruction with this name, of one stage or of all."""
    return [
        argument for found, instruction, argument in instructions() if instruction == name and stage in (None, found)
    ]


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return dict(yaml.safe_load((DOCKER / name).read_text()))


# --- Dockerfile --------------------------------------------------------------------------------------------


def test_stages_build_on_existing_stages() -> None:
    (image,) = arguments("ARG")
    name, default = image.split("=")
    assert default.startswith("python:3.12.")
    known = {f"${{{name}}}"}
    for argument in arguments("FROM"):
        base, name = argument.split(" AS ")
        assert base in known, argument
        known.add(name)
    for argument in arguments("COPY"):
        if argument.startswith("--from="):
            assert argument.split()[0].removeprefix("--from=") in known
    assert {"gateway", "worker"} <= known


def test_images_and_actions_of_others_are_pinned_by_digest() -> None:
    """A tag is whatever its owner last pushed: the same commit gave other images on another day."""
    images = [argument.split("=")[1] for argument in arguments("ARG")]
    images += [each["image"] for each in compose()["services"].values() if "build" not in each]
    images.append(yaml.safe_load((DOCKER / "helm/fluid-serve/values.yaml").read_text())["redis"]["bundled"]["image"])
    assert len(images) == 5, images
    assert [image for image in images if not re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)] == []
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    actions = re.findall(r"uses: (.*)", workflow)
    assert actions and all(re.fullmatch(r"\S+@[0-9a-f]{40} # v[\d.]+", action) for action in actions), actions


def test_the_images_use_a_supported_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "Programming Language :: Python :: 3.12" in project["classifiers"]
    assert [argument.split(".")[:2] for argument in arguments("ARG")] == [["PYTHON_IMAGE=python:3", "12"]]
    assert all(base.split()[0] in ("${PYTHON_IMAGE}", "base", "source") for base in arguments("FROM"))
    assert "--python-version 3.12" in (ROOT / "Makefile").read_text(), "the locks are for another Python"


def test_every_python_that_is_promised_is_tested() -> None:
    """3.13 was promised, and never ran."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [name.rpartition(" ")[2] for name in project["classifiers"] if ":: Python ::" in name]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == promised
    for page in ("README.md", "docs/deploy.md", "CONTRIBUTING.md"):
        assert f"Python {promised[0]} to {promised[-1]}" in (ROOT / page).read_text(), page


def test_the_drivers_and_the_cluster_that_are_needed_are_named() -> None:
    """What a page asks for follows from the locks and the chart."""
    page = (ROOT / "docs/deploy.md").read_text()
    (cuda,) = re.findall(r"^cuda-toolkit==(\d+)\.", (ROOT / "locks/worker.txt").read_text(), flags=re.M)
    assert f"a driver of CUDA {cuda}," in page
    chart = yaml.safe_load((DOCKER / "helm/fluid-serve/Chart.yaml").read_text())
    assert f"Kubernetes {chart['kubeVersion'][2:6]};" in page
    (torch,) = re.findall(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert f"A CPU build of torch {torch}" in (ROOT / "README.md").read_text()


def test_copied_files_exist_and_are_not_ignored() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    copied = {source for a in arguments("COPY") if not a.startswith("--from") for source in a.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert {package.split("/")[0] for package in packages} <= copied


def test_images_install_from_the_locks_only() -> None:
    """Versions other than those in CI would make the images an untested service."""
    lines = re.findall(r"pip (?:install|wheel) [^&]+", " ".join(arguments("RUN")))
    assert len(lines) == 7
    for words in map(shlex.split, lines):
        files = [words[at + 1] for at, word in enumerate(words) if word == "-r"]
        assert all((ROOT / file).exists() for file in files)
        assert "--require-hashes" in words if files else "--no-deps" in words, words
    assert {"worker", "otel"} <= set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )


@pytest.mark.parametrize("stage", ["gateway", "worker"])
def test_image_commands_exist(stage: str) -> None:
    (command,) = arguments("CMD", stage)
    program, *words = json.loads(command)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert program in scripts
    assert main._parser().parse_args(words).command == stage
    assert arguments("STOPSIGNAL", stage) == ["SIGTERM"], "SIGTERM starts the drain"
    user = arguments("USER", stage)
    assert user == ["10001"] and f"--uid {user[0]}" in arguments("RUN", "base")[0]


def test_image_settings_exist() -> None:
    for stage in ("base", "gateway", "worker"):
        given = dict(word.split("=", 1) for line in arguments("ENV", stage) for word in line.split())
        settings = Settings.from_env({k: v for k, v in given.items() if k.startswith("FLUID_")})
        assert settings.host == ("0.0.0.0" if stage == "gateway" else Settings().host)


def test_the_health_check_uses_a_route_on_the_exposed_port() -> None:
    check = next(a for a in arguments("HEALTHCHECK", "gateway"))
    port, path = re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", check)[0]
    assert arguments("EXPOSE", "gateway") == [port] and int(port) == Settings().port
    assert path in routes()


def routes() -> set[str]:
    return set(create_app(Settings()).openapi()["paths"])


# --- compose -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml", "compose.results.yaml"])
def test_compose_settings_exist(file: str) -> None:
    for name, service in compose(file)["services"].items():
        given = {k: v for k, v in service.get("environment", {}).items() if v is not None}  # None: if it is set
        given = {k: re.sub(r"\$\{\w+:[-?](.*)\}", r"\1", v) for k, v in given.items()}
        settings = Settings.from_env(given)
        if file == "compose.yaml" and name in ("gateway", "worker"):
            host, port = settings.redis_url.removeprefix("redis://").split(":")
            assert host in compose()["services"] and port == "6379"
            checkpoint = ROOT / "model" / "checkpoints" / settings.checkpoint
            assert (checkpoint / "config.json").exists(), "not a shipped checkpoint"


def test_gateways_and_workers_have_the_same_bucket() -> None:
    """A gateway that has none answers 503 for images; a worker that has none cannot read what edits start from."""
    gateway, worker = (each["environment"] for each in compose("compose.results.yaml")["services"].values())
    assert gateway == worker
    about = (DOCKER / "helm/fluid-serve/values.yaml").read_text().partition("\nresults:")[2].partition("\nwebhooks:")[0]
    assert set(gateway) == {"FLUID_RESULTS", *re.findall(r"AWS_[A-Z_]+\w", about)}
    assert Settings.from_env({"FLUID_RESULTS": gateway["FLUID_RESULTS"].split("?")[1].rstrip("}")}).results


def test_the_stop_grace_period_is_longer_than_the_drain() -> None:
    """Docker's default is SIGKILL after ten seconds: every image in progress would be generated again."""
    for name in ("gateway", "worker"):
        service = compose()["services"][name]
        assert (
            int(service["stop_grace_period"].removesuffix("s")) >= float(service["environment"]["FLUID_DRAIN_S"]) + 10
        )


def test_compose_services_refer_to_existing_stages_volumes_and_services() -> None:
    whole = compose()
    services = whole["services"]
    stages = {stage for stage, *_ in instructions()}
    for name, service in services.items():
        if "build" in service:
            assert (
                service["build"]["target"] in stages and (DOCKER / service["build"]["context"] / "Dockerfile").exists()
            )
        else:
            assert re.search(r":v?\d+\.\d+", service["image"]), f"{name} has no fixed version"
        assert set(service.get("depends_on", [])) <= set(services)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            exists = (DOCKER / source).exists() if source.startswith(".") else source in whole["volumes"]
            assert exists, f"{name} mounts {source}, which does not exist"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network without API keys"
    assert {"gateway", "worker", "redis", "prometheus", "grafana"} == set(services)
    assert set(compose("compose.gpu.yaml")["services"]) <= set(services)
    assert set(compose("compose.results.yaml")["services"]) == {"gateway", "worker"}
    assert f"127.0.0.1:{Settings().port}:{Settings().port}" in services["gateway"]["ports"]


def test_settings_keys_and_checkpoints_may_be_the_operators() -> None:
    """Only four settings could be given, no checkpoint was mounted, and a replaced key file was read no more."""
    text = (DOCKER / "compose.yaml").read_text()
    for name, folder in (("gateway", "keys"), ("worker", "checkpoints")):
        (file,) = compose()["services"][name]["env_file"]
        assert file == {"path": "fluid.env", "required": False}
        own = text.partition(f"\n  {name}:\n")[2].partition("\n\n")[0]
        (mount,) = (yaml.safe_load(each) for each in re.findall(r"# volumes: (.+)", own))
        assert mount == [f"../{folder}:/{folder}:ro"]
        assert re.search(rf"FLUID_\w+=/{folder}/\S+", own)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/keys", "/checkpoints", "/docker/fluid.env"} <= set(ignored)


def test_redis_persists_before_it_answers_and_evicts_nothing() -> None:
    words = compose()["services"]["redis"]["command"]
    given = dict(zip(words[1::2], words[2::2], strict=True))
    assert given["--appendonly"] == "yes" and given["--appendfsync"] == "always"
    assert given["--maxmemory-policy"] == "noeviction"
    assert re.fullmatch(r"\$\{REDIS_MAXMEMORY:-\d+gb\}", given["--maxmemory"]), "the kernel would end a full Redis"
    assert "redis:/data" in compose()["services"]["redis"]["volumes"]


def test_an_environment_that_was_made_in_part_is_made_again(tmp_path: Path) -> None:
    """Without python3-venv, Debian's venv leaves an interpreter without pip, which make then took for the whole."""
    stub, made = tmp_path / "python", tmp_path / "venv" / "bin" / "python"
    stub.write_text('#!/bin/sh\nmkdir -p "$3/bin" && touch "$3/bin/python"\nexit 1\n')
    stub.chmod(0o755)
    done = subprocess.run(
        ["make", str(made), f"VENV={tmp_path / 'venv'}", f"PYTHON={stub}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0 and "apt-get install python3-venv" in done.stdout + done.stderr
    assert not made.exists()
