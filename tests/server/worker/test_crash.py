"""Real processes are killed, and no accepted job is lost."""

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import redis

from server.cli.demo import free_port
from server.client import FluidClient
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.keys import Keys
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE
from tests.server.harness import Hold, Service, alive, start, until


def test_a_killed_workers_job_is_redelivered(new_service: Callable[..., Service], hold: Hold) -> None:
    """SIGKILL in the middle of an image: redelivered after the lease expires, with the same seed and the same image."""
    service = new_service()
    job = service.client.submit(hold.prompt(), seed=3, num_inference_steps=40)
    hold.reached(service.client, job["id"])
    service.workers[0].kill()
    hold.release()
    service.add_worker()
    done = service.client.wait(job["id"], timeout_s=60)
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    service.client.wait_ready(timeout_s=60)  # the gateway's view may be older than the new worker
    expected = service.client.generate(hold.prompt(), seed=3, num_inference_steps=40)[0].data
    assert service.client.image(job["id"]) == expected


def test_a_suspect_that_runs_alone_is_published(new_service: Callable[..., Service], hold: Hold) -> None:
    """A job on its last attempt runs alone, and a batch with a suspect has no room. With its last row done the worker
    had nothing to wait for, looped without yielding, and starved the task that was to publish the image."""
    service = new_service(max_attempts=2, lease_s=0.5)
    job = service.client.submit(hold.prompt(), num_inference_steps=60)
    hold.reached(service.client, job["id"])
    service.workers[0].kill()
    hold.release()
    service.add_worker()
    done = service.client.wait(job["id"], timeout_s=60)
    assert (done["status"], done["attempt"]) == ("succeeded", 2)


def test_a_job_that_kills_workers_fails_and_the_service_survives(new_service: Callable[..., Service]) -> None:
    """After max_attempts dead workers the job is a dead letter, and no further worker dies."""
    service = new_service(max_attempts=2, lease_s=0.5)
    job = service.client.submit("[kill]")
    for _ in range(2):
        service.workers[-1].wait(timeout=60)
        service.add_worker()
    done = service.client.wait(job["id"], timeout_s=60)
    assert (done["status"], done["error"]["code"]) == ("failed", "worker_lost")
    assert service.workers[-1].poll() is None


def test_sigterm_finishes_running_jobs_and_requeues_the_rest(new_service: Callable[..., Service], hold: Hold) -> None:
    """A rolling restart must not cost any job an image or an attempt."""
    service = new_service(max_rows=1, lease_s=10.0)
    first, second = (service.client.submit(hold.prompt(), num_inference_steps=60) for _ in range(2))
    hold.reached(service.client, first["id"])
    service.workers[0].terminate()
    until(lambda: not service.client.ready()[0], what="the drain")
    hold.release()
    assert service.workers[0].wait(timeout=60) == 0
    assert service.client.job(first["id"])["status"] == "succeeded"
    assert service.client.job(second["id"])["status"] == "queued"
    service.add_worker()
    done = service.client.wait(second["id"], timeout_s=60)
    assert (done["status"], done["attempt"]) == ("succeeded", 1)


def test_a_job_that_outlasts_the_drain_is_requeued_at_once(new_service: Callable[..., Service], hold: Hold) -> None:
    """Past FLUID_DRAIN_S the job must be requeued, not abandoned until its lease expires."""
    service = new_service(drain_s=0.0, lease_s=30.0)
    job = service.client.submit(hold.prompt(), num_inference_steps=150)
    hold.reached(service.client, job["id"])
    service.workers[0].terminate()
    service.workers[0].wait(timeout=60)
    hold.release()
    service.add_worker()
    done = service.client.wait(job["id"], timeout_s=60)
    assert (done["status"], done["attempt"]) == ("succeeded", 1)


def _descendants(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):  # it exited in the meantime
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "sigkill"])
def test_serve_leaves_no_process_and_no_lost_job(tmp_path: Path, how: signal.Signals) -> None:
    """Ctrl-C, and even SIGKILL of the supervisor: no orphan process, and waiting jobs run after the restart."""
    settings = Settings(data_dir=str(tmp_path), engine=FAKE_ENGINE, port=free_port(), drain_s=0.0, fake_step_ms=5.0)
    service = start("serve", settings, "--quiet")
    with FluidClient(settings.base_url) as client:
        client.wait_ready(timeout_s=60)
        children = _descendants(service.pid)
        assert len(children) == 3
        job = client.submit("a cat", num_inference_steps=400)
        service.send_signal(how)
        service.wait(timeout=60)
        until(lambda: not any(map(alive, children)), what="their end")
        again = start("serve", settings, "--quiet")
        try:
            client.wait_ready(timeout_s=60)
            assert client.wait(job["id"], timeout_s=60)["status"] == "succeeded"
        finally:
            again.send_signal(signal.SIGINT)
            assert again.wait(timeout=60) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_serve_restarts_a_crashed_worker(tmp_path: Path) -> None:
    """One segfault must not stop the service until an operator intervenes."""
    settings = Settings(data_dir=str(tmp_path), engine=FAKE_ENGINE, port=free_port(), lease_s=0.5, max_attempts=1)
    service = start("serve", settings, "--quiet")
    try:
        with FluidClient(settings.base_url) as client:
            client.wait_ready(timeout_s=60)
            killer = client.submit("[kill]")
            assert client.wait(killer["id"], timeout_s=60)["status"] == "failed"
            client.wait_ready(timeout_s=60)
            assert client.generate("a cat", quality="low")
    finally:
        service.terminate()
        assert service.wait(timeout=60) == 0


def test_redis_crashes_and_comes_back(tmp_path: Path) -> None:
    """While Valkey is down requests get 503 with Retry-After instead of a hang; afterwards all jobs resume unaided."""
    with EmbeddedValkey(tmp_path) as valkey:
        service = Service(Settings(redis_url=valkey.url, engine=FAKE_ENGINE, port=free_port(), lease_s=1.0))
        try:
            service.add_worker()
            service.client.wait_ready(timeout_s=60)
            job = service.client.submit("a cat", num_inference_steps=500)
            assert valkey.process is not None
            valkey.process.kill()
            valkey.process.wait()
            answer = httpx.get(f"{service.settings.base_url}/v1/jobs/{job['id']}")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["code"] == "queue_unavailable"
            until(lambda: not service.client.ready()[0], what="unreadiness")
            valkey.start()
            assert service.client.wait(job["id"], timeout_s=60)["status"] == "succeeded"
            service.client.wait_ready(timeout_s=60)
            assert service.client.generate("a cat")
        finally:
            service.close()


def test_a_redis_that_lost_its_data_learns_the_model_again(new_service: Callable[..., Service]) -> None:
    """A Redis that restarts without its data knows neither group nor model: workers used to poll it in vain."""
    service = new_service()
    with redis.Redis.from_url(service.settings.redis_url) as client:
        client.delete(*client.keys(f"{{{service.settings.namespace}}}:*"))
    until(lambda: service.client.models(), what="the model's return")
    service.client.wait_ready(timeout_s=60)
    assert service.client.generate("a cat", quality="low")


def test_a_worker_stopped_while_it_loads_signs_off(valkey: EmbeddedValkey, settings: Settings) -> None:
    """It exited at once without a word, which would now count as a lost worker."""
    process = start("worker", replace(settings, checkpoint="hanging"))
    keys = Keys(settings.namespace)
    with redis.Redis.from_url(valkey.url) as client:
        until(lambda: client.zcard(keys.last_seen_zset), what="a heartbeat")
        process.terminate()
        assert process.wait(timeout=60) == 0
        assert not client.exists(keys.last_seen_zset)
