"""Distilling a flow head into one of a mean flow: its targets, its start, what it learns, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fluid_kernels.head_loop import HeadWeights, Rows, head_loop_ref, initial_noise
from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.config import ConfigError
from model.flow import flow_schedule
from model.inference.heads.chains import make_chains
from model.networks.autoregressive_model import Fluid
from model.networks.diffusion_head import DiffusionHead
from model.networks.factory import new_tokenizer
from model.networks.text_encoder import HashEncoder
from model.presets import PRESETS
from model.training.feeds import ImageFeed
from model.training.few_steps import __main__ as command
from model.training.few_steps.distill import distill, distilled_model, mean_flow_head, prepare
from model.training.few_steps.errors import compare, sample
from model.training.few_steps.mean_velocity import CHAINS, mean_velocity, sample_steps, step_tables
from model.training.trainer import Clock
from tests.model.image_set import squares

FLOW = replace(PRESETS["tiny"], prediction="flow", clamp=0.0, width=32, head_width=64)


def flow_head() -> DiffusionHead:
    """A head whose paths bend: random weights, none of them zero."""
    torch.manual_seed(0)
    head = DiffusionHead(FLOW)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.18)
    head.time[0].weight.data.view(64, 2, 128)[..., :73] = 0  # features that turn many times along the path
    return head.requires_grad_(False).eval()


def test_the_mean_velocity_is_that_of_many_small_steps() -> None:
    head, rng = flow_head(), torch.Generator().manual_seed(1)
    z, x = torch.randn(6, 32, generator=rng), torch.randn(6, 4, generator=rng)
    t, length = torch.tensor([1000, 1000, 900, 500, 60, 40]), torch.tensor([1000, 500, 250, 125, 60, 20])
    found = mean_velocity(head, x, t, length, z)
    end = x.clone()
    for part in range(400):
        now = t - length * part / 400
        end = end - (length / 400 / 1000)[:, None] * head(end, now, z)
    expected = (x - end) / (length / 1000)[:, None]
    assert (expected - head(x, t.float(), z)).abs().max() > 0.1, "the paths do not bend: this test shows nothing"
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_every_step_of_every_chain_is_trained() -> None:
    t, length = sample_steps(step_tables(1.0), 20_000, torch.Generator().manual_seed(0))
    seen = set(zip(t.tolist(), length.tolist(), strict=True))
    for count in CHAINS:
        timesteps = [0, *flow_schedule(count).timesteps.tolist()]
        assert {(end, end - start) for start, end in pairwise(timesteps)} <= seen


def test_a_mean_flow_head_starts_as_the_flow_head_and_is_sampled_with_its_step_lengths() -> None:
    teacher = flow_head()
    student = mean_flow_head(teacher).requires_grad_(False)
    x, t, z = torch.randn(5, 4), torch.tensor([3, 100, 500, 900, 1000]), torch.randn(5, 32)
    assert torch.equal(student(x, t, z, torch.tensor([1, 50, 20, 900, 1000])), teacher(x, t, z))

    torch.nn.init.normal_(student.length[2].weight, std=0.3)
    rows = Rows(
        condition=student.embed_condition(z), guided=torch.zeros(0, dtype=torch.int64),
        chain=torch.tensor([0, 0, 0, 1, 1]), guidance=torch.ones(5), temperature=torch.ones(5),
        seed=torch.arange(5), position=torch.arange(5),
    )  # fmt: skip
    chains = make_chains(student, (6, 3))
    found = head_loop_ref(HeadWeights.from_head(student), rows, chains, student.config.update_rule, 0.0)
    noise = initial_noise(rows, 4)
    expected = torch.cat(
        [sample(student, z[:3], z[:3], noise[:3], 6, 1.0), sample(student, z[3:], z[3:], noise[3:], 3, 1.0)]
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[:3], sample(teacher, z[:3], z[:3], noise[:3], 6, 1.0), atol=0.01)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A model with random weights and the bending flow head, saved and loaded."""
    torch.manual_seed(0)
    model = Fluid(FLOW)
    model.head.load_state_dict(flow_head().state_dict())
    save_checkpoint(tmp_path / "flow", model, new_tokenizer(FLOW), {"name": "bent"}, torch.float32)
    return load_checkpoint(tmp_path / "flow")


def feed_of(checkpoint: Checkpoint, folder: Path) -> ImageFeed:
    encoder = HashEncoder(PRESETS["tiny"].text)
    return ImageFeed(squares(), checkpoint.tokenizer, encoder, folder, batch=8, seed=0)


def test_distillation_makes_few_steps_exact_and_resumes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The same head after 120 steps, in one run or in two, is many times closer in 1 to 4 steps than Euler's method."""
    feed = feed_of(checkpoint, tmp_path)
    run = prepare(checkpoint, feed, Clock(steps=120, minutes=0), ema=0.98, seed=0)
    losses = distill(run, tmp_path / "whole.pt", progress=False)
    assert losses[-1] < 0.25 * losses[0]
    errors = compare(run, distilled_model(run).diffusion_head, images=8)
    for scale in ("guidance 1", "guidance 3"):
        euler, mean_flow = errors[scale]["flow"], errors[scale]["mean flow"]
        assert all(after < 0.5 * before for before, after in zip(euler[:4], mean_flow[:4], strict=True)), errors

    first = prepare(checkpoint, feed, Clock(steps=50, minutes=0), ema=0.98, seed=0)
    first.learner.clock.steps = 120  # the rate of learning is that of the whole run
    stop = iter(range(50))
    first.feed = Interrupted(feed, stop)
    with pytest.raises(KeyboardInterrupt):
        distill(first, tmp_path / "parts.pt", progress=False)
    second = prepare(checkpoint, feed, Clock(steps=120, minutes=0), ema=0.98, seed=0)
    distill(second, tmp_path / "parts.pt", progress=False)
    for name, value in run.student.state_dict().items():
        assert torch.equal(value, second.student.state_dict()[name]), name


class Interrupted(ImageFeed):
    """A feed whose user presses Ctrl-C after some batches."""

    def __init__(self, feed: ImageFeed, batches: object) -> None:
        self.__dict__.update(feed.__dict__)
        self.batches = batches

    def tokens(self, step: int) -> tuple[torch.Tensor, torch.Tensor, None]:
        if next(self.batches, None) is None:  # type: ignore[call-overload]
            raise KeyboardInterrupt
        return super().tokens(step)


def test_only_flow_heads_of_random_order_are_distilled(checkpoint: Checkpoint, tmp_path: Path) -> None:
    feed = feed_of(checkpoint, tmp_path)
    with pytest.raises(ConfigError, match="mean_flow needs prediction 'flow'"):
        replace(PRESETS["tiny"], mean_flow=True)
    save_checkpoint(tmp_path / "v", Fluid(PRESETS["tiny"]), checkpoint.tokenizer, {}, torch.float32)
    with pytest.raises(ConfigError, match="prediction 'v': only random-continuous"):
        prepare(load_checkpoint(tmp_path / "v"), feed, Clock(1, 0), ema=0.9, seed=0)
    save_checkpoint(tmp_path / "m", Fluid(replace(FLOW, mean_flow=True)), checkpoint.tokenizer, {}, torch.float32)
    with pytest.raises(ConfigError, match="mean-flow head already"):
        prepare(load_checkpoint(tmp_path / "m"), feed, Clock(1, 0), ema=0.9, seed=0)


def test_the_command_writes_a_checkpoint_that_says_where_it_comes_from(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    squares().save(tmp_path / "data")
    out = tmp_path / "out"
    words = ["--recipe", "model/recipes/emoji-64.toml", "--checkpoint", str(checkpoint.folder), "--out", str(out)]
    monkeypatch.setattr(command, "open_feed", lambda *args: feed_of(checkpoint, tmp_path))  # the recipe has other data
    command.main([*words, "--minutes", "0", "--steps", "4"])
    written = load_checkpoint(out / "checkpoint")
    assert written.config == replace(FLOW, mean_flow=True)
    assert written.about["name"] == "bent" and written.about["few_steps"]["of"] == checkpoint.sha256
    assert set(json.loads((out / "errors.json").read_text())["errors"]) == {"guidance 1", "guidance 3"}
    assert (out / "errors.svg").exists() and "mean flow" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no recipe"):
        command.main(["--recipe", "nowhere.toml", "--out", str(out)])
