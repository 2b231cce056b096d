"""The plan of a host's workers: devices and threads of each, and refusals with figures."""

from typing import Any

import pytest

from server.errors import ConfigError
from server.launcher.workers import GB, PlannedWorker, plan_workers
from server.settings import Settings

GPUS = {"devices": [{"name": "H100", "free": 80 * GB}] * 4, "cpus": 64, "rows": 16}
CPUS = {"devices": [], "cpus": 16, "rows": 16}


def _plan(found: dict[str, Any], wanted: str = "auto", memory: int = 64 * GB, **settings: Any) -> Any:
    needs = found.get("needs", [30 * GB] if found["devices"] else [GB])
    found = {"models": [{"checkpoint": "runs/a", "id": "a", "needs": needs}], **found}
    return plan_workers(Settings(**settings), wanted, found, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, memory)


def _models(*needs: int) -> dict[str, Any]:
    """Models a, b, ... with these needs in GB."""
    return {
        "models": [{"checkpoint": f"runs/{m}", "id": m, "needs": [n * GB]} for m, n in zip("abc", needs, strict=False)]
    }


def test_a_worker_per_gpu_or_per_some_cores() -> None:
    plan = _plan(GPUS)
    assert [worker.env["CUDA_VISIBLE_DEVICES"] for worker in plan.workers] == ["4", "5", "6", "7"]
    assert plan.text.startswith("4 workers: cuda:0, cuda:1, cuda:2, cuda:3\n  memory: about 30.0 GB of 80.0 GB free")
    assert len(_plan(GPUS, "2").workers) == 2
    assert (
        _plan(CPUS).workers
        == [PlannedWorker({"FLUID_CHECKPOINT": "runs/a", "FLUID_DEVICE": "cpu", "FLUID_THREADS": "4"})] * 4
    )
    assert len(_plan(CPUS, threads=8).workers) == 2
    assert _plan(CPUS, "1").workers[0].env["FLUID_THREADS"] == "16"
    assert len(_plan(CPUS | {"cpus": 2}).workers) == 1


def test_devices_that_share_a_model() -> None:
    plan = _plan(GPUS | {"needs": [30 * GB, 20 * GB]}, tensor_parallel=2)
    assert [(worker.env["CUDA_VISIBLE_DEVICES"], worker.ranks) for worker in plan.workers] == [("4,5", 2), ("6,7", 2)]
    assert "cuda:0+cuda:1, cuda:2+cuda:3" in plan.text and "of rank 1: about 20.0 GB" in plan.text
    [worker] = _plan(CPUS | {"needs": [GB, GB]}, "1", tensor_parallel=2).workers
    assert worker.ranks == 2 and worker.env["FLUID_THREADS"] == "4"


def test_each_model_has_devices_of_its_own_while_there_are_enough() -> None:
    def placed(plan: Any) -> list[tuple[str, str, str]]:
        return [(w.model, w.env["FLUID_CHECKPOINT"], w.env["CUDA_VISIBLE_DEVICES"]) for w in plan.workers]

    plan = _plan(GPUS | _models(30, 20))
    assert placed(plan) == [("a", "runs/a", "4"), ("a", "runs/a", "5"), ("b", "runs/b", "6"), ("b", "runs/b", "7")]
    assert plan.models == ("a", "b")
    assert "2 workers of b: cuda:2, cuda:3\n  memory: about 20.0 GB of 80.0 GB free" in plan.text
    one_gpu = GPUS | {"devices": GPUS["devices"][:1]}
    assert placed(_plan(one_gpu | _models(30, 20), "1")) == [("a", "runs/a", "4"), ("b", "runs/b", "4")]
    with pytest.raises(ConfigError, match=r"b does not fit: .* 60\.0 GB beside 30\.0 GB of other models on cuda:0"):
        _plan(one_gpu | _models(30, 60), "1")


def test_models_share_the_cores() -> None:
    plan = _plan(CPUS | _models(1, 2))
    assert [(w.model, w.env["FLUID_THREADS"]) for w in plan.workers] == [("a", "4"), ("a", "4"), ("b", "4"), ("b", "4")]
    assert plan.text.startswith("4 workers (2 of a, 2 of b) on 16 cores: 4 threads\n  memory: about 6.0 GB of 64.0 GB")
    assert [w.model for w in _plan(CPUS | {"cpus": 2} | _models(1, 2, 3)).workers] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r"6 workers of a and b .* need 75\.0 GB, 5\.0 and 20\.0 GB .* 2 of each"):
        _plan(CPUS | _models(5, 20), "3")


def test_two_models_of_one_id_are_refused() -> None:
    """Requests could not tell them apart, and the worker of one would wait for ever."""
    models = [{"checkpoint": name, "id": "a", "needs": [GB]} for name in ("x", "y")]
    with pytest.raises(ConfigError, match=r"x and y have the same model id, 'a'.*: change about\.name"):
        _plan(CPUS | {"models": models})
    with pytest.raises(ConfigError, match="--checkpoint x is given twice: for more workers of a model use --workers N"):
        _plan(CPUS | {"models": [models[0], dict(models[0])]})


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
