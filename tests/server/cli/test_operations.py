"""Operators' commands against a running service: dead letters, doctor, reload under load."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from server.cli import doctor, operations
from server.cli.demo import free_port
from server.client import FluidClient
from server.errors import ReloadRefused
from server.jobs import JobState
from server.queue.job_queue import JobQueue
from server.queue.keys import Keys
from server.queue.registry import Registry, WorkerInfo
from server.queue.statistics import QueueCounts
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE
from tests.server.harness import PATIENCE_S, Service, child_env, fluid, start, until

#: The `fluid` script, where a thread of obstore has yet to return from its last callback, and an ending of Python that
#: gives it the time to.
LATE_CALLBACK = """
import sys, threading, time
from asyncio.selector_events import BaseSelectorEventLoop
from server.cli.main import run_and_exit

wake = BaseSelectorEventLoop._write_to_self

def wake_and_linger(loop):
    wake(loop)
    if threading.current_thread().name.startswith("Dummy-"):  # made by Rust
        time.sleep(0.5)

class Late:
    def __del__(self, sleep=time.sleep):
        sleep(1.0)

BaseSelectorEventLoop._write_to_self = wake_and_linger
sys.late = Late()
run_and_exit()
"""


def test_dead_letters_are_listed_replayed_and_dropped(new_service: Callable[..., Service]) -> None:
    """A replay is a new job with the same seed; the failed job keeps its state."""
    service = new_service()
    settings = service.settings
    assert fluid(settings, "dlq", "list").stdout == ""
    poison, other = service.client.submit("[raise] a cat", seed=9), service.client.submit("[raise] a dog")
    for job in (poison, other):
        assert service.client.wait(job["id"], timeout_s=60)["status"] == "failed"
    listed = fluid(settings, "dlq", "list").stdout
    assert poison["id"] in listed and "3 attempts" in listed and "told to fail" in listed
    letter = json.loads(fluid(settings, "dlq", "show", poison["id"]).stdout)
    assert (letter["input"]["seed"], letter["error"]["code"]) == (9, "engine_error")
    replayed = fluid(settings, "dlq", "replay", poison["id"])
    again = replayed.stdout.split()[-1]
    assert service.client.wait(again, timeout_s=60)["input"]["seed"] == 9
    assert service.client.job(poison["id"])["status"] == "failed"
    assert poison["id"] not in fluid(settings, "dlq", "list").stdout.replace(again, "")
    assert fluid(settings, "dlq", "drop", "all").returncode == 0
    assert fluid(settings, "dlq", "list").stdout == ""
    missing = fluid(settings, "dlq", "show", "job_nope")
    assert (missing.returncode, "dlq list" in missing.stderr) == (1, True)


def test_unreadable_dead_letters_can_be_shown_and_dropped(new_service: Callable[..., Service]) -> None:
    """They were counted, and FluidDeadLetters fired for good, but no command could name or drop them."""
    service = new_service(workers=0)  # of its own: "all" would be those of other tests, too
    settings, stream = service.settings, Keys(service.settings.namespace).dead_letters_stream
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client:
        nameless = client.xadd(stream, {"new": "field"})
        client.xadd(stream, {"id": "job_newer", "kind": "job", "attempt": "1", "error": "{}", "input": "{}"})
        listed = fluid(settings, "dlq", "list").stdout
        assert listed.count("cannot be read by this version") == 2 and nameless in listed and "job_newer" in listed
        assert json.loads(fluid(settings, "dlq", "show", nameless).stdout)["fields"] == {"new": "field"}
        replayed = fluid(settings, "dlq", "replay", "all")
        assert (replayed.returncode, replayed.stderr.count("cannot be replayed")) == (0, 2)
        assert fluid(settings, "dlq", "drop", nameless).stdout == f"{nameless} dropped\n"
        assert fluid(settings, "dlq", "drop", "all").stdout == "job_newer dropped\n"
        assert client.xlen(stream) == 0


def test_doctor_passes_then_reports_every_problem(new_service: Callable[..., Service]) -> None:
    """Exit status and remedies: for a healthy service, then without its worker while a job waits."""
    service = new_service(result_ttl_s=4)
    service.client.generate("a cat", quality="low")
    healthy = fluid(service.settings, "doctor")
    assert healthy.returncode == 0, healthy.stdout
    assert "1 submitted = 1 succeeded" in healthy.stdout and "appendfsync always" in healthy.stdout
    assert "fake kernels on cpu" in healthy.stdout
    until(lambda: "0 kept + 1 expired" in fluid(service.settings, "doctor").stdout, what="the expiry in the counters")
    service.workers[0].terminate()
    service.workers[0].wait(timeout=60)
    service.client.submit("a cat")
    unhealthy = fluid(service.settings, "doctor")
    assert unhealthy.returncode == 1
    for text in ("no live worker", "1 normal jobs wait for fake", "-> Start a worker with fake"):
        assert text in unhealthy.stdout
    with redis.Redis.from_url(service.settings.redis_url) as client:
        client.hincrby(Keys(service.settings.namespace).counters_hash, "state:succeeded", 1)
    assert "job counters disagree: 2 submitted = 1 queued + 2 succeeded" in fluid(service.settings, "doctor").stdout


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"submitted": {"job": 4}}, "4 submitted"),
        ({"waiting": {("m", "low"): 0}}, "0 in the waiting lists"),
        ({"leases": 2}, "2 leases"),
        ({"expired": 1}, "1 expired"),
    ],
)
def test_each_counter_check_can_fail(changes: dict[str, object], text: str) -> None:
    """A check that never fails proves nothing; here each of the four does, alone."""
    states = {s.value: 0 for s in JobState} | {"queued": 1, "processing": 1, "failed": 1}
    good = QueueCounts(submitted={"job": 3}, states=states, waiting={("m", "low"): 1}, leases=1, kept=1)
    assert all(finding.level is doctor.Level.OK for finding in doctor.check_counters(good))
    bad = [f for f in doctor.check_counters(replace(good, **changes)) if f.level is doctor.Level.FAIL]  # type: ignore[arg-type]
    assert len(bad) == 1 and text in bad[0].text and bad[0].remedy


def test_doctor_without_a_service_says_how_to_start_one(tmp_path: Path) -> None:
    """The commonest mistake: another data folder, or no service at all. Silence would look like health."""
    done = fluid(Settings(data_dir=str(tmp_path)), "doctor")
    assert (done.returncode, "fluid serve" in done.stderr) == (2, True)


def test_commands_find_the_embedded_valkey(tmp_path: Path) -> None:
    """`fluid serve` needs no FLUID_REDIS_URL, so operators' commands must not need one either."""
    settings = Settings(data_dir=str(tmp_path), engine=FAKE_ENGINE, port=free_port())
    service = start("serve", settings, "--quiet")
    try:
        with FluidClient(settings.base_url) as client:
            client.wait_ready(timeout_s=60)
        assert "0 submitted = 0" in fluid(settings, "doctor").stdout
    finally:
        service.terminate()
        service.wait(timeout=60)


def test_reload_drops_no_request(new_service: Callable[..., Service]) -> None:
    """With a single worker under load, every request before, during and after the swap gets its image."""
    service = new_service(fake_step_ms=5.0, max_rows=4)
    failures: list[BaseException] = []
    stop = threading.Event()

    def load(seed: int) -> None:
        with FluidClient(service.settings.base_url) as client:
            while not stop.is_set():
                try:
                    client.generate("a cat", seed=seed, quality="low", n=2)
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=load, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        slow = service.client.submit("a castle", num_inference_steps=100)
        until(lambda: service.client.job(slow["id"])["progress"]["step"] > 3)
        done = fluid(service.settings, "reload", "--to", "better-weights")
        assert done.returncode == 0, done.stderr
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert service.client.wait(slow["id"], timeout_s=60)["attempt"] == 1
    sha256 = hashlib.sha256(b"better-weights").hexdigest()
    until(lambda: service.client.models()[0]["checkpoint_sha256"] == sha256)
    # A restarted worker must load the new checkpoint too.
    service.workers[0].kill()
    service.workers[0].wait()
    service.add_worker()
    until(lambda: sha256[:12] in fluid(service.settings, "reload", "--to", "better-weights").stderr)


@pytest.mark.anyio
async def test_a_reload_whose_worker_is_gone_has_failed(queue: JobQueue, settings: Settings) -> None:
    """A worker that ran out of memory while it loaded both was not counted: exit status 0, and the old weights."""
    registry = Registry(queue.redis, settings.namespace)
    await registry.heartbeat(WorkerInfo(id="w1", state="ready", model="fake", max_rows=4, rows=0, started_at=0), {})
    with pytest.raises(ReloadRefused, match="1 of 1 workers ended while they loaded better"):
        await operations._reload(replace(settings, checkpoint="fake"), "better", 60.0)


def test_a_failed_reload_keeps_the_old_checkpoint(new_service: Callable[..., Service]) -> None:
    """A typo in a path must not take the service down."""
    service = new_service()
    done = fluid(service.settings, "reload", "--to", "missing-weights")
    assert (done.returncode, "no checkpoint" in done.stderr) == (1, True)
    assert service.client.generate("a cat", quality="low")


def test_the_status_survives_a_store_that_is_still_at_it(new_service: Callable[..., Service], tmp_path: Path) -> None:
    """On a busy machine `fluid doctor` ended by SIGABRT, its report printed: a thread of obstore asked for the
    interpreter while it ended."""
    settings = new_service(workers=0, results=tmp_path.as_uri()).settings
    command = [sys.executable, "-c", LATE_CALLBACK, "doctor"]
    report = subprocess.run(command, env=child_env(settings), capture_output=True, text=True, timeout=PATIENCE_S)
    assert f"finished images are written to {tmp_path.as_uri()}" in report.stdout, report
    assert report.returncode == 1 and "1 of " in report.stderr, report  # no worker is running
