"""What runs on a borrowed GPU is rehearsed here on the CPU: its minutes are not for finding typos."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.prompt_states import PROMPTS, StoredStates
from model.condition import PromptError
from model.config import PRESETS
from model.text import build_text_encoder

TEXT = PRESETS["emoji-64"].text


@pytest.mark.parametrize("name", ["gpu_check", "gpu_bench"])
def test_the_call_for_a_gpu_runs_through_on_a_cpu(name: str, tmp_path: Path) -> None:
    """As `make` calls it, smallest cases: nothing fails, every part has records, the file is whole."""
    file = tmp_path / "result.json"
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        f"benchmarks.{name}",
        "--device",
        "cpu",
        "--quick",
        "--out",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == []
    parts = json.loads(file.read_text())["parts"]
    assert all(part["records"] and part["error"] is None for part in parts.values())


def test_stored_states_are_the_encoders() -> None:
    """A picture of a borrowed GPU is compared with one of this machine: both must have been told the same."""
    stored, encoder = StoredStates(TEXT), build_text_encoder(TEXT)
    for caption in ("", *PROMPTS):
        (found, mask), (expected, real) = stored.encode([caption]), encoder.encode([caption])
        assert torch.equal(mask, real) and stored.count_tokens(caption) == encoder.count_tokens(caption)
        torch.testing.assert_close(found[mask], expected[real], rtol=1e-4, atol=1e-4)
    with pytest.raises(PromptError, match="'a dog' is not stored"):
        stored.encode(["a dog"])
