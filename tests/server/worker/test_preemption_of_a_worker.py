"""Preemption in a real service: the small caller's image, and what becomes of the one that was paused for it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.server.harness import Hold, Service, until
from tests.server.worker.test_snapshots import metric


@pytest.fixture
def flooded(new_service: Callable[..., Service], hold: Hold) -> tuple[Service, dict[str, object]]:
    """A service whose two rows are held by a job of the caller "flood", of two images that wait for `hold.release`."""
    service = new_service(max_rows=2, snapshot_steps=0, lease_s=30.0, drain_s=0.0)
    job = service.client.submit(hold.prompt(), n=2, seed=5, num_inference_steps=80, user="flood")
    hold.reached(service.client, job["id"])
    return service, job


def test_a_small_caller_is_served_while_long_images_run(flooded: tuple[Service, dict[str, object]], hold: Hold) -> None:
    """And the image that was paused for it ends as if nothing had happened, in the same attempt."""
    service, job = flooded
    small = service.client.submit("an apple", num_inference_steps=5, user="small")
    assert service.client.wait(small["id"], timeout_s=60)["status"] == "succeeded"
    before = service.client.job(str(job["id"]))
    assert (before["status"], before["progress"]["step"]) == ("processing", 80)
    hold.release()
    done = service.client.wait(str(job["id"]), timeout_s=60)
    assert (done["status"], done["attempt"]) == ("succeeded", 1)
    images = [service.client.image(str(job["id"]), index) for index in range(2)]
    for index, image in enumerate(images):
        again = service.client.generate(hold.prompt(), seed=5 + index, num_inference_steps=80)[0].data
        assert image == again
    until(lambda: metric(service, 'fluid_preemptions_total{reason="share"}') == 1, what="the count of preemptions")
    until(lambda: metric(service, "fluid_resumed_rows_total") == 1, what="the count of resumed rows, a beat later")


def test_a_job_with_a_paused_image_can_be_canceled(flooded: tuple[Service, dict[str, object]], hold: Hold) -> None:
    service, job = flooded
    small = service.client.submit(hold.prompt(), user="small")
    until(lambda: service.client.job(small["id"])["status"] == "processing")
    service.client.cancel(str(job["id"]))
    until(lambda: service.client.job(str(job["id"]))["status"] == "canceled")
    hold.release()
    assert service.client.wait(small["id"], timeout_s=60)["status"] == "succeeded"


@pytest.mark.parametrize("how", ["drained", "killed"])
def test_a_paused_image_survives_its_worker(flooded: tuple[Service, dict[str, object]], hold: Hold, how: str) -> None:
    """Its snapshot is stored when it is paused, not only when a step is due for one."""
    service, job = flooded
    small = service.client.submit(hold.prompt(), user="small")
    until(lambda: service.client.job(small["id"])["status"] == "processing")
    until(lambda: metric(service, "fluid_snapshots_total") >= 1, what="the snapshot of the paused image")
    service.settings = replace(service.settings, lease_s=1.0)
    if how == "drained":
        service.workers[0].terminate()
    else:
        service.workers[0].kill()
    service.workers[0].wait(timeout=60)
    hold.release()
    service.add_worker()
    done = service.client.wait(str(job["id"]), timeout_s=60)
    assert (done["status"], done["attempt"]) == ("succeeded", 1 if how == "drained" else 2)
    until(lambda: metric(service, "fluid_resumed_rows_total") >= 1, what="the count of resumed rows")
