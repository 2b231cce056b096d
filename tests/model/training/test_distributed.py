"""Training on several ranks: their shares make up the batch, and any number of them resumes a run to the same curve."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.networks.text_encoder import HashEncoder
from model.networks.tokenizer import PcaSkipTokenizer, to_pixels
from model.presets import PRESETS
from model.process_group import Share
from model.training.distributed.folders import newest
from model.training.feeds import ImageFeed
from model.training.optimizer import OPTIMIZERS
from tests.model.image_set import squares

STEPS, EVERY = 24, 2
# Sums over ranks add up in another order; each step carries the difference on.
CURVE = 3e-4
WEIGHTS = 4e-3  # relative distance; in the files they are bfloat16


def test_shares_make_up_the_batch(tmp_path: Path) -> None:
    config = PRESETS["tiny"]
    tokenizer, encoder = PcaSkipTokenizer(config.tokenizer).eval(), HashEncoder(config.text)  # type: ignore[arg-type]
    whole = ImageFeed(squares(), tokenizer, encoder, tmp_path, 5, 0)
    rows, tokens, _ = whole.tokens(3)
    shares = [Share(rank, 3) for rank in range(3)]
    parts = [ImageFeed(squares(), tokenizer, encoder, tmp_path, 5, 0, share).tokens(3) for share in shares]
    assert all(torch.equal(part[0], rows) for part in parts)  # every rank makes the whole batch's choices
    assert [len(part[1]) for part in parts] == [1, 2, 2]
    assert torch.equal(torch.cat([part[1] for part in parts]), tokens)

    def sample(part: slice) -> torch.Tensor:
        return whole.captions.sample(rows, 0.5, torch.Generator().manual_seed(1), part)[0]

    assert torch.equal(torch.cat([sample(share.part(len(rows))) for share in shares]), sample(slice(None)))


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a short run, but for its folder."""
    folder = tmp_path_factory.mktemp("ranks")
    squares().save(folder / "data")
    tokenizer = PcaSkipTokenizer(PRESETS["tiny"].tokenizer)  # type: ignore[arg-type]
    tokenizer.start_from_pca(to_pixels(torch.from_numpy(squares().images)))
    from safetensors.torch import save_file

    save_file(tokenizer.state_dict(), folder / "tokenizer.safetensors")
    recipe = folder / "recipe.toml"
    recipe.write_text(Path("model/recipes/emoji-64.toml").read_text())
    given = {
        "recipe": recipe, "preset": "tiny", "data": folder / "data", "tokenizer": folder / "tokenizer.safetensors",
        "minutes": 0, "steps": STEPS, "batch": 7, "save-every": EVERY, "sheet-every": 1000, "compile": "false",
        "warmup": 4,
    }  # fmt: skip
    return [str(part) for name, value in given.items() for part in (f"--{name}", value)]


def _ranks(count: int, command: Sequence[str], meeting: Path) -> list[subprocess.Popen[str]]:
    """Start the command on so many ranks, without torchrun's agent, which would end when a rank is killed."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", "model.training", *command], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count), "PROCESS_GROUP_FILE": str(meeting)},
        )
        for rank in range(count)
    ]  # fmt: skip


def _kill_after(step: int, processes: list[subprocess.Popen[str]], out: Path) -> int:
    """SIGKILL the ranks once a state of that step is complete; returns the step of the newest."""
    while (found := newest(out / "state.pt")) is None or int(found.name) < step:
        assert all(process.poll() is None for process in processes), [p.communicate()[0] for p in processes]
        time.sleep(0.005)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    found = newest(out / "state.pt")
    assert found is not None
    return int(found.name)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_number_of_ranks_resumes_to_the_curve_of_one_process(
    flags: list[str], tmp_path: Path, optimizer: str
) -> None:
    """2 ranks, killed; 1 rank, killed; 2 ranks by torchrun: losses and weights are those of one plain process."""
    whole, out = tmp_path / "whole", tmp_path / "ranks"
    flags = [*flags, "--optimizer", optimizer]
    command = [*flags, "--out", str(out)]
    subprocess.run([sys.executable, "-m", "model.training", *flags, "--out", whole], check=True, capture_output=True)
    first = _kill_after(4, _ranks(2, command, tmp_path / "a"), out)
    second = _kill_after(first + 4, _ranks(1, command, tmp_path / "b"), out)
    assert 4 <= first < second < STEPS
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "model.training", *command],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.count(f"resuming {out} at step {second}") == 1  # rank 0 alone reports
    assert done.stderr.count("train: 100%") <= 1 and done.stdout.count("checkpoint in") == 1
    curves = [json.loads((folder / "history.json").read_text()) for folder in (whole, out)]
    assert (
        [entry[0] for entry in curves[1]] == [entry[0] for entry in curves[0]] == list(range(EVERY, STEPS + 1, EVERY))
    )
    differences = [abs(one[2] - other[2]) for one, other in zip(*curves, strict=True)]
    assert max(differences) < CURVE, differences
    states = [load_checkpoint(folder / "checkpoint").model.state_dict() for folder in (whole, out)]
    assert states[0].keys() == states[1].keys()
    # AdamW moves a weight by the sign of a gradient that rounds to about zero, so single weights differ more.
    apart = sum(float((value - states[1][name]).square().sum()) for name, value in states[0].items())
    assert apart / sum(float(value.square().sum()) for value in states[0].values()) < WEIGHTS**2
    refused = subprocess.run([sys.executable, "-m", "model.training", *command], capture_output=True, text=True)
    assert refused.returncode == 1 and "torchrun --nproc-per-node 1" in refused.stderr


@pytest.mark.slow
def test_ranks_resume_the_state_of_a_single_process(flags: list[str], tmp_path: Path) -> None:
    """A run that outgrows its device goes on with two: nothing is lost of weights, average, moments and clock."""
    whole, out = tmp_path / "whole", tmp_path / "ranks"
    alone = [sys.executable, "-m", "model.training", *flags]
    subprocess.run([*alone, "--out", whole], check=True, capture_output=True)
    single = subprocess.Popen([*alone, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "state.pt").exists():
        assert single.poll() is None
        time.sleep(0.005)
    single.kill()
    single.wait()
    processes = _ranks(2, [*flags, "--out", str(out)], tmp_path / "meeting")
    told = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), told
    resumed = re.search(r"at step (\d+)", told[0])
    assert resumed and EVERY <= int(resumed[1]) < STEPS and told[1].strip() == ""
    assert not (out / "state.pt").exists(), "a single process would resume it, and lose all steps since"
    curves = [json.loads((folder / "history.json").read_text()) for folder in (whole, out)]
    assert [entry[0] for entry in curves[1]] == list(range(EVERY, STEPS + 1, EVERY))
    assert max(abs(one[2] - other[2]) for one, other in zip(*curves, strict=True)) < CURVE
