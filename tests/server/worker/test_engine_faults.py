"""Engines that fail, hang, run out of memory or return the wrong shape; a Redis that hangs; deadlines."""

import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis

from server.errors import ServiceError
from server.gateway.admission import MAX_RETRY_AFTER_S
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.keys import Keys
from server.queue.redis_client import SOCKET_TIMEOUT_S
from server.worker.watchdog import HUNG_STATUS
from tests.server.harness import Hold, Service, fluid, until

GENERATE = "/v1/images/generations"


def end_of(service: Service, job: dict[str, Any]) -> tuple[str, int, str | None]:
    done = service.client.wait(job["id"], timeout_s=60)
    return done["status"], done["attempt"], (done["error"] or {}).get("code")


@pytest.mark.parametrize("fault", ["[raise]", "[raise-admit]", "[wrong-shape]"])
def test_a_poison_job_fails_alone(new_service: Callable[..., Service], fault: str) -> None:
    """In a full batch it becomes a dead letter after three attempts; its neighbours all succeed at their first."""
    service = new_service(max_rows=8, fake_step_ms=5.0)
    before = [service.client.submit("fine", num_inference_steps=60) for _ in range(4)]
    poison = service.client.submit(fault, num_inference_steps=20)
    after = [service.client.submit("fine", num_inference_steps=60) for _ in range(3)]
    assert end_of(service, poison)[:2] == ("failed", 3)
    for job in (*before, *after):
        assert end_of(service, job) == ("succeeded", 1, None)
    assert poison["id"] in fluid(service.settings, "dlq", "list").stdout
    assert fluid(service.settings, "doctor").returncode == 0


def test_two_images_of_a_job_that_fail_in_one_step(new_service: Callable[..., Service]) -> None:
    """Both have left their rows; handling the first used to free the second's row again, so the engine was declared
    broken, and every attempt of the job ended a worker."""
    service = new_service(max_rows=4)
    poison = service.client.submit("[wrong-shape]", n=3, quality="low")
    assert end_of(service, poison) == ("failed", 3, "engine_error")
    assert service.workers[0].poll() is None


def test_a_batch_too_large_for_the_memory_is_split(new_service: Callable[..., Service]) -> None:
    """Each job fits into memory alone, so each succeeds, and none loses an attempt."""
    service = new_service(max_rows=4, fake_step_ms=2.0)
    jobs = [service.client.submit("[oom]", num_inference_steps=30) for _ in range(4)]
    for job in jobs:
        assert end_of(service, job) == ("succeeded", 1, None)


def test_one_job_too_large_for_the_memory_is_split(new_service: Callable[..., Service]) -> None:
    """Bisection used to stop at the job: one of ten images that fit in ones or twos failed three times."""
    service = new_service(max_rows=8, fake_step_ms=2.0)
    job = service.client.submit("[oom]", n=5, num_inference_steps=10)
    assert end_of(service, job) == ("succeeded", 1, None)


def test_a_worker_that_hangs_in_its_canary_image_is_ended(new_service: Callable[..., Service]) -> None:
    """The watchdog used to start after the canary, so such a worker stayed "loading" indefinitely."""
    service = new_service(checkpoint="hanging", step_timeout_s=0.5, workers=0)
    assert service.add_worker().wait(timeout=60) == HUNG_STATUS


def test_a_worker_whose_engine_hangs_is_ended(new_service: Callable[..., Service], hold: Hold) -> None:
    """Its event loop is alive and would renew the leases of stuck jobs indefinitely."""
    service = new_service(step_timeout_s=2.5, lease_s=30.0, max_attempts=2)  # longer than a stall of the machine
    neighbour = service.client.submit(hold.prompt(), num_inference_steps=80)
    hold.reached(service.client, neighbour["id"])
    hanging = service.client.submit("[hang]")
    for _ in range(2):
        assert service.workers[-1].wait(timeout=60) == HUNG_STATUS
        hold.release()
        service.add_worker()
    assert end_of(service, neighbour)[0] == "succeeded"
    assert end_of(service, hanging) == ("failed", 2, "engine_hung")


def test_a_row_is_free_one_step_after_the_cancel(new_service: Callable[..., Service]) -> None:
    """Polling the flag ten times a second used to keep a canceled job on its row for dozens of short steps."""
    service = new_service(max_rows=1, fake_step_ms=50.0)
    running = service.client.submit("slow", num_inference_steps=20000)
    until(lambda: service.client.job(running["id"])["progress"]["step"] > 1)
    waiting = service.client.submit("next", num_inference_steps=1)
    assert service.client.job(waiting["id"])["queue"]["position"] == 0
    service.client.cancel(running["id"])
    assert end_of(service, waiting)[0] == "succeeded"
    assert service.client.job(running["id"])["status"] == "canceled"


def test_a_deadline_aborts_waiting_jobs_and_cancels_running_ones(new_service: Callable[..., Service]) -> None:
    """A late image is worthless, and takes rows from other callers."""
    service = new_service(max_rows=1, fake_step_ms=10.0)
    ahead = service.client.submit("slow", num_inference_steps=20000)
    until(lambda: service.client.job(ahead["id"])["status"] == "processing")
    waiting = service.client.submit("late", deadline_ms=300)
    assert end_of(service, waiting) == ("aborted", 0, "deadline_exceeded")
    with pytest.raises(ServiceError, match="deadline passed before") as caught:
        service.client.generate("late as well", deadline_ms=200)
    assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
    service.client.cancel(ahead["id"])
    running = service.client.submit("slow", num_inference_steps=20000, deadline_ms=4000)
    assert end_of(service, running) == ("canceled", 1, "deadline_exceeded")
    in_time = service.client.submit("in time", quality="low", deadline_ms=60_000)
    assert end_of(service, in_time) == ("succeeded", 1, None)
    assert fluid(service.settings, "doctor").returncode == 0


def test_deadlines_pass_without_a_worker(new_service: Callable[..., Service]) -> None:
    """Without a worker to take the job, the gateway has to enforce its deadline."""
    service = new_service()
    service.workers[0].terminate()
    service.workers[0].wait(timeout=60)
    assert end_of(service, service.client.submit("late", deadline_ms=100))[0] == "aborted"


def test_classes_and_callers_take_turns(new_service: Callable[..., Service], hold: Hold) -> None:
    """One row, one worker: high before normal before low, and one caller's flood does not delay another's job."""
    service = new_service(max_rows=1, fake_step_ms=10.0)
    first = service.client.submit(hold.prompt())
    until(lambda: service.client.job(first["id"])["status"] == "processing")
    names = {}
    for name, options in (
        ("low", {"priority": "low", "user": "zoe"}),
        ("flood1", {"user": "ann"}),
        ("flood2", {"user": "ann"}),
        ("flood3", {"user": "ann"}),
        ("other", {"user": "bob"}),
        ("high", {"priority": "high", "user": "zoe"}),
    ):
        names[name] = service.client.submit(name, num_inference_steps=4, **options)["id"]
    places = {name: service.client.job(job_id)["queue"] for name, job_id in names.items()}
    assert [places[name]["position"] for name in ("high", "flood1", "low")] == [0, 1, 5]
    assert all(place["is_possible"] and place["eta_seconds"] >= 0 for place in places.values())
    hold.release()
    ended = {name: service.client.wait(job_id, timeout_s=60)["started_at"] for name, job_id in names.items()}
    order = sorted(ended, key=lambda name: ended[name])
    assert order[0] == "high" and order[-1] == "low"
    assert order.index("other") < order.index("flood2")


def test_a_full_queue_says_when_to_retry(new_service: Callable[..., Service]) -> None:
    """Retry-After follows from the waiting work and the workers' speed; a constant was always too short."""
    service = new_service(max_rows=1, fake_step_ms=20.0, max_queue=2, drain_s=0.0)
    running = service.client.submit("slow", num_inference_steps=2000)
    until(lambda: service.client.job(running["id"])["status"] == "processing")
    for _ in range(2):
        service.client.submit("slow", num_inference_steps=2000)
    url = service.settings.base_url + "/v1/jobs"

    answer = httpx.post(url, json={"prompt": "x"})
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "queue_full"
    # 4,000 row-steps wait, of 20 ms each or more: the queue is at least 80 s long, and a tenth of it is 8 s.
    assert 8 <= int(answer.headers["retry-after"]) <= MAX_RETRY_AFTER_S


def test_a_redis_that_hangs_is_a_503_within_a_second(
    new_service: Callable[..., Service], valkey: EmbeddedValkey
) -> None:
    """A Redis that neither answers nor closes used to cost each caller three waits of five seconds."""
    service = new_service()
    assert valkey.process is not None
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        shorter_than_three_waits_s = 3 * SOCKET_TIMEOUT_S - 1
        answer = httpx.get(service.settings.base_url + "/v1/jobs/job_x", timeout=shorter_than_three_waits_s)
    finally:
        valkey.process.send_signal(signal.SIGCONT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    until(lambda: service.client.ready()[0])
    assert service.client.generate("a cat", quality="low")


def test_the_wake_up_list_is_bounded(new_service: Callable[..., Service]) -> None:
    """Every accepted job pushes a wake-up; without an idle worker the list used to grow with every job."""
    service = new_service(max_rows=1, fake_step_ms=20.0, drain_s=0.0)
    service.client.submit("slow", num_inference_steps=20000)
    for _ in range(80):
        service.client.submit("waits")
    keys = Keys(service.settings.namespace)
    with redis.Redis.from_url(service.settings.redis_url) as client:
        assert client.llen(keys.wakeup_list("fake")) <= 64
