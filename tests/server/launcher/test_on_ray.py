"""Workers on a Ray cluster: how many there are, and what a node that dies costs."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from server.client import FluidClient
from server.errors import ConfigError
from server.launcher import on_ray, subprocesses
from server.launcher.on_ray import RayWorker, Scale
from server.settings import Settings
from tests.server.harness import Hold, child_env, fluid, until

STORE_BYTES = 80 << 20  # the least that a node's object store takes


@pytest.mark.parametrize(
    ("waiting", "running", "workers"),
    [(0, 0, 1), (1, 0, 1), (2048, 0, 1), (2049, 0, 2), (10**9, 0, 4), (0, 17, 2), (0, 16, 1), (5000, 40, 3)],
)
def test_there_are_as_many_workers_as_the_work_asks_for(waiting: int, running: int, workers: int) -> None:
    """Jobs in progress keep their workers: an empty queue alone does not end them."""
    assert Scale(1, 4, row_steps=2048).wanted(waiting, running, rows=16) == workers


@pytest.mark.parametrize(("least", "most"), [(0, 4), (3, 2), (-1, -1)])
def test_limits_that_contradict_each_other_are_named(least: int, most: int) -> None:
    with pytest.raises(ConfigError, match=f"--min-workers is {least} and --max-workers {most}"):
        Scale(least, most)


@pytest.mark.parametrize(("row_steps", "cooldown"), [(0, 1), (-5, 1), (1, -1), (1, float("nan"))])
def test_a_step_that_cannot_be_taken_is_refused(row_steps: int, cooldown: float) -> None:
    """--row-steps 0 ended the scaling by a division, without a word."""
    with pytest.raises(ConfigError, match="--row-steps is"):
        Scale(1, 4, row_steps, cooldown)


class FakeRay:
    """A cluster of one actor, whose answers are given."""

    class exceptions:  # Ray's own name
        RayError = OSError

    def __init__(self, *answers: str) -> None:
        self.answers, self.started, self.killed = list(answers), 0, 0

    def remote(self, **_: float) -> Callable[[type], Any]:
        call = SimpleNamespace(remote=lambda: None)
        return lambda _: SimpleNamespace(remote=lambda env: self._begin() or SimpleNamespace(watch=call))

    def _begin(self) -> None:
        self.started += 1

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return refs, []

    def get(self, ref: object) -> str:
        return self.answers.pop(0)

    def kill(self, actor: object) -> None:
        self.killed += 1


def test_a_bad_node_does_not_end_a_service_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """One new actor on a node without the checkpoint used to drain every worker and the gateway."""
    monkeypatch.setattr(on_ray, "POLL_S", 0.0)
    with pytest.raises(ConfigError, match="no checkpoint"):
        worker = RayWorker(FakeRay("no checkpoint"), {}, {})
        worker.start()
        worker.watch()
    ray = FakeRay("", "no checkpoint", "no checkpoint")
    for proven in (False, True):
        worker = RayWorker(ray, {}, {}, proven=proven)
        worker.start()
        worker.watch()
        if not proven:
            worker.watch()
    assert (ray.started, ray.killed, ray.answers) == (2, 2, [])


def test_without_ray_the_package_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[ray\]' in a clone"):
        on_ray._connect(settings)


def test_the_embedded_valkey_is_refused(settings: Settings) -> None:
    done = fluid(replace(settings, redis_url=""), "serve", "--on", "ray", "--quiet")
    assert done.returncode == 2 and "--on ray needs FLUID_REDIS_URL" in done.stderr
    done = fluid(settings, "serve", "--on", "ray", "--workers", "2")
    assert done.returncode == 2 and "give --min-workers and --max-workers" in done.stderr


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without processors for workers, and two nodes with one each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    yield found
    found.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_lost_node_costs_no_job(settings: Settings, cluster: Any, hold: Hold) -> None:
    """120 images on one node, then on two; the first is killed with all that runs on it. At last one worker is left.
    Twenty are held until then: however long a node takes to start, they call for the second worker."""
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)]
    settings = replace(settings, fake_step_ms=20.0, max_rows=2, drain_s=5.0)
    command = [sys.executable, "-m", "server.cli", "serve", "--on", "ray", "--max-workers", "2", "--row-steps", "40",
               "--cooldown", "3"]  # fmt: skip
    service = subprocesses.spawn(command, env={**child_env(settings), "RAY_ADDRESS": cluster.address})
    try:
        with FluidClient(settings.base_url, timeout_s=120, max_retries=20) as client:
            _until_workers(settings, 1)
            prompts = [f"a red apple {n}" for n in range(100)] + [hold.prompt()] * 20
            jobs = [client.submit(prompt, num_inference_steps=16)["id"] for prompt in prompts]
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
            _until_workers(settings, 2)
            assert client.job(jobs[-1])["status"] == "queued"
            cluster.remove_node(nodes[0], allow_graceful=False)
            hold.release()
            ends = [client.wait(job, timeout_s=90) for job in jobs]
            assert [end["status"] for end in ends] == ["succeeded"] * 120
            _until_workers(settings, 1)
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0


def _until_workers(settings: Settings, count: int) -> None:
    """Wait until so many workers are up."""

    def up() -> bool:
        try:
            page = httpx.get(f"{settings.base_url}/metrics").text
        except httpx.TransportError:
            return False
        return len(re.findall(r"^fluid_worker_up{.*} 1.0$", page, re.MULTILINE)) == count

    until(up, seconds=90, what=f"{count} workers")
