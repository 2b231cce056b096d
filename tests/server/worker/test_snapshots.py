"""Resuming from an earlier attempt: snapshots of rows, finished images, and when they must not be used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from server.jobs import JobError, JobState, Output
from server.queue.job_queue import JobQueue
from server.queue.keys import Keys
from server.queue.lease_queue import LeaseQueue
from server.settings import Settings
from server.worker.engine.fake import FakeEngine
from server.worker.engine.protocol import RowRequest
from tests.server.harness import Hold, Service, accept, fluid, job_input, lapse, take, until

pytestmark = pytest.mark.anyio


def metric(service: Service, name: str) -> float:
    """The scraped sum of a worker's counter; 0 before its first count."""
    lines = service.client._call("GET", "/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_a_killed_workers_rows_resume_where_they_were(new_service: Callable[..., Service], hold: Hold) -> None:
    """Without resuming, long images would never finish where workers die often."""
    service = new_service(snapshot_steps=4)
    job = service.client.submit(hold.prompt(), seed=3, num_inference_steps=200)
    until(
        lambda: b'"done": 100' in saved(service, job).get(b"snapshot:0", b""), what="the snapshot of half of the steps"
    )
    service.workers[0].kill()
    service.add_worker()
    first = until(lambda: service.client.job(job["id"])["progress"]["step"] if _attempt(service, job) == 2 else 0)
    assert first == 100
    hold.release()
    done = service.client.wait(job["id"], timeout_s=60)
    service.client.wait_ready(timeout_s=60)  # the gateway's view may be older than the new worker
    expected = service.client.generate(hold.prompt(), seed=3, num_inference_steps=200)[0].data
    assert (done["status"], service.client.image(job["id"])) == ("succeeded", expected)
    until(lambda: metric(service, "fluid_resumed_rows_total") == 1, what="the count of resumed rows")


def saved(service: Service, job: dict[str, Any]) -> dict[bytes, bytes]:
    """What the next attempt of the job would resume from."""
    with redis.Redis.from_url(service.settings.redis_url) as client:
        found: dict[bytes, bytes] = client.hgetall(Keys(service.settings.namespace).resume_hash(job["id"]))  # type: ignore[assignment]
    return found


def _attempt(service: Service, job: dict[str, object]) -> int:
    found = service.client.job(str(job["id"]))
    return int(found["attempt"]) if found["status"] == "processing" else 0


@pytest.mark.slow
def test_the_shipped_model_resumes_to_the_same_bytes(new_service: Callable[..., Service]) -> None:
    """End to end with real weights: after SIGKILL another process resumes to the same file."""
    service = new_service(engine=Settings().engine, threads=1, max_rows=1, snapshot_steps=2, workers=0)
    service.add_worker()
    service.client.wait_ready(timeout_s=90)
    request: dict[str, Any] = {"seed": 5, "num_inference_steps": 24, "diffusion_steps": 250}
    expected = service.client.generate("a red apple, 3d style", **request)[0].data
    job = service.client.submit("a red apple, 3d style", **request)
    until(lambda: service.client.job(job["id"])["progress"]["step"] >= 6)
    service.workers[0].kill()
    service.add_worker()
    done = service.client.wait(job["id"], timeout_s=120)
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    assert service.client.image(job["id"]) == expected
    until(lambda: metric(service, "fluid_resumed_rows_total") == 1, what="the count of resumed rows")


def test_finished_images_of_a_killed_attempt_are_kept(new_service: Callable[..., Service], tmp_path: Path) -> None:
    """A worker's death used to repeat all ten images, though nine of them were finished."""
    service = new_service(max_rows=1)
    hold = Hold(tmp_path, seed=7)
    job = service.client.submit(hold.prompt(), n=3, seed=5, num_inference_steps=40)
    until(lambda: {b"output:0", b"output:1"} <= saved(service, job).keys(), what="two images")
    service.workers[0].kill()
    service.workers[0].wait(timeout=60)
    hold.release()
    told = metric(service, 'fluid_images_total{model="fake"}')  # those of the two that its last heartbeat reported
    service.add_worker()
    done = service.client.wait(job["id"], timeout_s=60)
    images = [service.client.image(job["id"], i) for i in range(3)]
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    until(lambda: metric(service, 'fluid_images_total{model="fake"}') > told, what="the new worker's images")
    assert metric(service, 'fluid_images_total{model="fake"}') == told + 1
    service.client.wait_ready(timeout_s=60)  # the gateway's view may be older than the new worker
    for i, image in enumerate(images):
        assert image == service.client.generate(hold.prompt(), seed=5 + i, num_inference_steps=40)[0].data


def test_a_drain_requeues_with_a_snapshot(new_service: Callable[..., Service], hold: Hold) -> None:
    """A rolling restart that cannot wait used to requeue jobs at step 0."""
    service = new_service(snapshot_steps=0, drain_s=0.0, lease_s=30.0)
    job = service.client.submit(hold.prompt(), num_inference_steps=200)
    hold.reached(service.client, job["id"])
    service.workers[0].terminate()
    assert service.workers[0].wait(timeout=60) == 0
    service.add_worker()
    assert until(lambda: service.client.job(job["id"])["progress"]["step"]) == 100
    hold.release()
    assert service.client.wait(job["id"], timeout_s=60)["attempt"] == 1


def test_other_weights_do_not_resume_from_a_snapshot(new_service: Callable[..., Service], hold: Hold) -> None:
    """An image must not mix two checkpoints."""
    service = new_service(lease_s=0.5, snapshot_steps=2)
    job = service.client.submit(hold.prompt(), num_inference_steps=20)
    until(lambda: saved(service, job), what="a snapshot")
    service.workers[0].kill()
    hold.release()
    service.settings = replace(service.settings, checkpoint="other")
    service.add_worker()
    assert service.client.wait(job["id"], timeout_s=60)["status"] == "succeeded"
    until(lambda: metric(service, 'fluid_images_total{model="fake"}') == 1)
    assert metric(service, "fluid_resumed_rows_total") == 0
    assert fluid(service.settings, "doctor").returncode == 0


async def test_only_the_current_attempt_may_save(queue: JobQueue, leases: LeaseQueue) -> None:
    """A zombie's late snapshot would set the image back, or name files under a token that is gone."""
    await accept(queue, "a", n=2)
    zombie = await take(leases, "w1")
    await lapse(queue, "a")
    [heir] = await leases.reclaim("w2", zombie.input.model, [], count=1)
    await leases.save(heir, "sha", snapshots={0: b"\xff\x00new"})
    await leases.save(zombie, "sha", snapshots={0: b"old", 1: b"old"})
    assert (await leases.resume(heir, "sha")).snapshots == {0: b"\xff\x00new"}


async def test_an_image_replaces_its_snapshot_and_the_end_deletes_all(queue: JobQueue, leases: LeaseQueue) -> None:
    """Saved progress must not outlive the job."""
    await accept(queue, "a", n=2)
    lease = await take(leases)
    output = Output(1, 8, 32, 32, "png", 3, "00", lease.token)
    await leases.save(lease, "sha", snapshots={0: b"x", 1: b"y"})
    await leases.store_result(lease, 1, b"png")
    await leases.save(lease, "sha", snapshots={}, outputs=[output])
    found = await leases.resume(lease, "sha")
    assert (found.snapshots, found.outputs) == ({0: b"x"}, {1: output})
    assert await queue.redis.ttl(queue.keys.resume_hash("a")) > 0
    await leases.finish(lease, JobState.SUCCEEDED, outputs=[output])
    assert not await queue.redis.exists(queue.keys.resume_hash("a"))
    assert await queue.result(await queue.get("a"), output) == b"png"


async def test_a_saved_image_whose_file_is_gone_is_generated_again(queue: JobQueue, leases: LeaseQueue) -> None:
    """Files expire by their own clock: after a long wait for its next attempt a job could name a missing file."""
    await accept(queue, "a", n=2)
    lease = await take(leases)
    await leases.save(lease, "sha", snapshots={}, outputs=[Output(0, 7, 32, 32, "png", 3, "00", lease.token)])
    assert (await leases.resume(lease, "sha")).outputs == {}


async def test_no_attempt_resumes_from_an_error(queue: JobQueue, leases: LeaseQueue) -> None:
    """A snapshot taken just before a failure might contain its cause."""
    await accept(queue, "a")
    lease = await take(leases)
    await leases.save(lease, "sha", snapshots={0: b"x"})
    await leases.requeue(lease, error=JobError("e", "m"), discard_progress=True)
    again = await take(leases)
    assert not again.resumable
    assert not (await leases.resume(again, "sha")).snapshots


@given(steps=st.integers(2, 30), data=st.data())
def test_the_fake_engine_obeys_the_contract(steps: int, data: st.DataObject) -> None:
    """Wherever the snapshot is taken, the row ends after as many steps and with the same image."""
    request = RowRequest.of(job_input(num_inference_steps=steps), 0)
    one, other = FakeEngine(2, 0.0), FakeEngine(3, 0.0)
    [row] = one.admit([request])
    for _ in range(data.draw(st.integers(1, steps - 1))):
        one.step()
    other.admit([replace(request, seed=99)])
    resumed = other.restore(request, one.snapshot(row))
    while row not in one.step():
        assert resumed not in other.step()
    assert resumed in other.step()
    assert one.image(row) == other.image(resumed)
    with pytest.raises(ValueError):
        other.restore(replace(request, seed=5), one.snapshot(row))


def test_the_fake_engine_holds_a_row_alone_and_only_while_the_file_exists(tmp_path: Path) -> None:
    """Tests that act in the middle of a job rely on it."""
    engine, hold = FakeEngine(2, 0.0), Hold(tmp_path, seed=7)
    requests = [RowRequest.of(job_input(hold.prompt(), seed=seed, num_inference_steps=4), 0) for seed in (7, 8)]
    held, free = engine.admit(requests)
    assert [engine.step() for _ in range(4)] == [[], [], [], [free]]
    engine.release(free)
    assert engine.progress(held) == (2, 4) and engine.step() == []
    hold.release()
    assert [engine.step() for _ in range(2)] == [[], [held]]
