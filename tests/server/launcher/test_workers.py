"""The plan of a host's workers: devices and threads of each, and refusals with figures."""

from typing import Any

import pytest

from server.errors import ConfigError
from server.launcher.workers import GB, PlannedWorker, plan_workers
from server.settings import Settings

GPUS = {"devices": [{"name": "H100", "free": 80 * GB}] * 4, "cpus": 64, "needs": [30 * GB], "rows": 16}
CPUS = {"devices": [], "cpus": 16, "needs": [GB], "rows": 16}


def _plan(found: dict[str, Any], wanted: str = "auto", memory: int = 64 * GB, **settings: Any) -> Any:
    return plan_workers(Settings(**settings), wanted, found, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, memory)


def test_a_worker_per_gpu_or_per_some_cores() -> None:
    plan = _plan(GPUS)
    assert [worker.env["CUDA_VISIBLE_DEVICES"] for worker in plan.workers] == ["4", "5", "6", "7"]
    assert plan.text.startswith("4 workers: cuda:0, cuda:1, cuda:2, cuda:3\n  memory: about 30.0 GB of 80.0 GB free")
    assert len(_plan(GPUS, "2").workers) == 2
    assert _plan(CPUS).workers == [PlannedWorker({"FLUID_DEVICE": "cpu", "FLUID_THREADS": "4"})] * 4
    assert len(_plan(CPUS, threads=8).workers) == 2
    assert _plan(CPUS, "1").workers[0].env["FLUID_THREADS"] == "16"
    assert len(_plan(CPUS | {"cpus": 2}).workers) == 1


def test_devices_that_share_a_model() -> None:
    plan = _plan(GPUS | {"needs": [30 * GB, 20 * GB]}, tensor_parallel=2)
    assert [(worker.env["CUDA_VISIBLE_DEVICES"], worker.ranks) for worker in plan.workers] == [("4,5", 2), ("6,7", 2)]
    assert "cuda:0+cuda:1, cuda:2+cuda:3" in plan.text and "of rank 1: about 20.0 GB" in plan.text
    [worker] = _plan(CPUS | {"needs": [GB, GB]}, "1", tensor_parallel=2).workers
    assert worker.ranks == 2 and worker.env["FLUID_THREADS"] == "4"


@pytest.mark.parametrize(
    ("found", "wanted", "settings", "message"),
    [
        (GPUS, "5", {}, "5 workers with 1 device each need 5 CUDA devices, and 4 devices can be seen"),
        (GPUS, "auto", {"tensor_parallel": 8}, "1 worker with 8 devices each need 8 CUDA devices"),
        (GPUS | {"needs": [90 * GB]}, "auto", {}, r"it needs 90\.0 GB on cuda:0, where 80\.0 GB are free"),
        (CPUS, "65", {}, r"65 workers with FLUID_MAX_ROWS=16 need 65\.0 GB, 1\.0 GB each, .* has 64\.0 GB"),
        (CPUS, "0", {}, "--workers is '0': give a number from 1, or auto"),
    ],
)
def test_what_does_not_fit_is_refused(found: Any, wanted: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _plan(found, wanted, **settings)
