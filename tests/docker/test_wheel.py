"""The wheel, built and installed as the images do it, and run outside the repository: gateway without torch, worker."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from server.client.sync import FluidClient
from server.errors import ServiceError
from server.launcher.embedded_valkey import EmbeddedValkey
from server.launcher.subprocesses import stop
from server.settings import Settings
from tests.docker.test_locks import LOCKS, ROOT
from tests.server.conftest import fake_settings
from tests.server.conftest import valkey as valkey
from tests.server.harness import until

pytestmark = pytest.mark.slow
INSTALL_S = 300


def pip(venv: Path, *words: str | Path) -> None:
    """Run the pip of a virtual environment, which is made first; skip the test if the index cannot be reached."""
    if not venv.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True, capture_output=True, timeout=INSTALL_S)
    command = [venv / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if done.returncode and ("ConnectionError" in done.stderr or "No matching distribution" in done.stderr):
        pytest.skip(f"packages of the locks cannot be had: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    pip(folder / "venv", "install", "--require-hashes", "-r", LOCKS / "build.txt")
    pip(folder / "venv", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def gateway(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with what the image of the gateway installs."""
    venv = tmp_path_factory.mktemp("gateway") / "venv"
    pip(venv, "install", "--require-hashes", "-r", LOCKS / "gateway.txt")
    pip(venv, "install", "--no-deps", "--no-index", wheel)
    return venv


@pytest.fixture(scope="module")
def worker(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel. torch is that of the tests: another gigabyte would show nothing more."""
    venv = tmp_path_factory.mktemp("worker") / "venv"
    pip(venv, "install", "--no-deps", "--no-index", wheel)
    return venv


@contextmanager
def running(venv: Path, command: str, settings: Settings, folder: Path, **env: str) -> Iterator[None]:
    """Run `fluid COMMAND` of an environment from an empty folder; it must stop by itself when asked."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1", **settings.to_env(), **env}
    launch = [venv / "bin" / "python", venv / "bin" / "fluid", command]
    process = subprocess.Popen(launch, cwd=folder, env=variables)
    try:
        yield
    finally:
        code = stop(process, grace_s=60)
    assert code in (0, -signal.SIGTERM)  # uvicorn raises the signal again once it has drained


def test_the_gateway_serves_without_torch(gateway: Path, valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Jobs of a model are accepted once a worker has registered it; without one, the reason is given."""
    code = (
        "import server, importlib.util as u; print(server.__file__); print(u.find_spec('torch'), u.find_spec('numpy'))"
    )
    python = [gateway / "bin" / "python", "-I", "-c", code]
    file, absent = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert file.startswith(str(gateway)) and absent == "None None"
    settings = replace(fake_settings(valkey), engine=Settings().engine)
    with running(gateway, "gateway", settings, tmp_path), FluidClient(settings.base_url) as client:
        until(lambda: "no live worker" in client.ready()[1], what="the gateway")
        with pytest.raises(ServiceError, match="No worker has registered a model"):
            client.generate("a red apple")
    assert not list(tmp_path.iterdir()), "a gateway writes nothing"


def test_the_worker_generates_a_shipped_models_image(
    gateway: Path, worker: Path, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    """The wheel holds the checkpoint."""
    settings = replace(fake_settings(valkey), engine=Settings().engine, checkpoint="atlas-128", threads=1, lease_s=10.0)
    code = "import server, model, fluid_kernels as k; print(server.__file__, model.__file__, k.__file__)"
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))}
    python = [worker / "bin" / "python", "-c", code]
    files = subprocess.run(
        python, cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True, check=True
    ).stdout
    assert all(file.startswith(str(worker)) for file in files.split()), "that is the repository"
    with (
        running(gateway, "gateway", settings, tmp_path),
        running(worker, "worker", settings, tmp_path, **paths),
        FluidClient(settings.base_url) as client,
    ):
        client.wait_ready(timeout_s=180)
        (image,) = client.generate("a red apple", num_inference_steps=4)
    assert image.data[:8] == base64.b64decode("iVBORw0KGgo=")
