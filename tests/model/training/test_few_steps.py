"""Distilling a flow head into one of a mean flow: its targets, its start, what it learns, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fluid_kernels.head_loop import HeadWeights, Rows, head_loop_ref, initial_noise
from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.config import ConfigError
from model.evaluation.validation_loss import validation_loss
from model.flow import flow_schedule
from model.inference.engine import Engine
from model.inference.generate import generate
from model.inference.heads.chains import embed_conditions, make_chains
from model.inference.prompts import TextPrompts
from model.inference.requests import Request, Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.diffusion_head import DiffusionHead
from model.networks.factory import new_tokenizer
from model.networks.text_encoder import HashEncoder
from model.presets import PRESETS
from model.sampling_presets import default_sampling, sampling_limits
from model.training.feeds import ImageFeed
from model.training.few_steps import __main__ as command
from model.training.few_steps.distill import distill, distilled_model, mean_flow_head, prepare
from model.training.few_steps.errors import compare, sample
from model.training.few_steps.paths import CHAINS, NODES, guided_paths, node_times, sample_scales, sample_steps
from model.training.trainer import Clock
from tests.model.conftest import context
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


def test_a_path_is_that_of_many_small_guided_steps() -> None:
    head, rng = flow_head(), torch.Generator().manual_seed(1)
    z, null, noise = (torch.randn(4, size, generator=rng) for size in (32, 32, 4))
    scales, times = torch.tensor([1.0, 0.5, 3.0, 6.0]), node_times(2.0)
    path = guided_paths(head, z, null, scales, noise, times)
    assert path.shape == (NODES + 1, 4, 4) and torch.equal(path[-1], noise)
    x, expected = noise, {int(times[-1]): noise}
    for now in range(1000, 0, -1):
        both = head(x.repeat(2, 1), torch.full((8,), now), torch.cat([z, null]))
        x = x - (both[4:] + scales[:, None] * (both[:4] - both[4:])) / 1000
        expected[now - 1] = x
    torch.testing.assert_close(path, torch.stack([expected[int(t)] for t in times]), atol=0.05, rtol=0.05)
    straight = noise - (noise - path[0]) * 0.5
    assert (path[NODES // 3] - straight).abs().max() > 0.3, "the paths do not bend: this test shows nothing"


def test_steps_and_scales_cover_what_sampling_asks_for() -> None:
    rng = torch.Generator().manual_seed(0)
    seen = set(zip(*(part.flatten().tolist() for part in sample_steps((4, 5000), rng)), strict=True))
    assert seen == {(k * NODES // count, (k + 1) * NODES // count) for count in CHAINS for k in range(count)}
    times = node_times(1.0)
    for count in CHAINS:  # a chain's times are nodes
        assert torch.equal(times[:: NODES // count][1:], flow_schedule(count).timesteps), count
    scales = sample_scales(10_000, rng)
    assert scales.min() >= 0 and scales.max() <= 8 and abs((scales == 1).float().mean() - 0.2) < 0.02


def test_a_mean_flow_head_starts_as_the_flow_head_and_is_sampled_with_lengths_and_scales() -> None:
    """The loop, which knows neither, gives what asking the head step by step gives, guided rows and others mixed."""
    teacher = flow_head()
    student = mean_flow_head(teacher).requires_grad_(False)
    z, null, noise = torch.randn(5, 32), torch.randn(5, 32), torch.randn(5, 4)
    for scale in (1.0, 3.0):
        assert torch.equal(sample(student, z, null, noise, 6, scale), sample(teacher, z, null, noise, 6, scale))

    for last in (student.length[2], student.guidance[2]):
        torch.nn.init.normal_(last.weight, std=0.3)
    guidance, guided = torch.tensor([1.0, 3.0, 3.0, 1.0, 3.0]), torch.tensor([1, 2, 4])
    rows = Rows(
        condition=embed_conditions(student, torch.cat([z, null[guided]]), guided, guidance), guided=guided,
        chain=torch.tensor([0, 0, 0, 1, 1]), guidance=guidance, temperature=torch.ones(5),
        seed=torch.arange(5), position=torch.arange(5),
    )  # fmt: skip
    chains = make_chains(student, (6, 3))
    found = head_loop_ref(HeadWeights.from_head(student), rows, chains, student.config.update_rule, 0.0)
    noise = initial_noise(rows, chains, 4)
    for row, (count, scale) in enumerate(zip((6, 6, 6, 3, 3), guidance.tolist(), strict=True)):
        one = slice(row, row + 1)
        expected = sample(student, z[one], null[one], noise[one], count, scale)
        torch.testing.assert_close(found[one], expected, atol=1e-4, rtol=1e-4)
        plain = sample(teacher, z[one], null[one], noise[one], count, scale)
        assert not torch.allclose(found[one], plain, atol=0.01), "lengths and scales have no effect"


def test_the_engine_agrees_with_the_definition(checkpoint: Checkpoint) -> None:
    """Rows with and without guidance, and with other numbers of diffusion steps, share a step."""
    torch.manual_seed(2)
    model = Fluid(replace(FLOW, mean_flow=True))
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.eval().requires_grad_(False)
    encoder = HashEncoder(FLOW.text)
    settings = [Sampling(4, 3, 3.0), Sampling(4, 2, 1.0), Sampling(8, 4, 5.0, "linear")]
    engine = Engine(model, TextPrompts(model, encoder), max_rows=3)
    slots = engine.admit([Request("red", seed, each) for seed, each in enumerate(settings)])
    finished: list[int] = []
    while len(finished) < len(slots):
        finished += engine.step()
    text, null = context(model, encoder, "red"), context(model, encoder, "")
    for seed, (slot, each) in enumerate(zip(slots, settings, strict=True)):
        expected = generate(model, text, null, torch.tensor([seed]), each)
        torch.testing.assert_close(engine.peek(slot), expected[0], atol=1e-4, rtol=1e-4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A model with random weights and the bending flow head, saved and loaded."""
    torch.manual_seed(0)
    model = Fluid(FLOW)
    model.head.load_state_dict(flow_head().state_dict())
    save_checkpoint(
        tmp_path / "flow",
        model,
        new_tokenizer(FLOW),
        {"name": "bent", "sampling": {"presets": "of 25 steps"}},
        torch.float32,
    )
    return load_checkpoint(tmp_path / "flow")


def feed_of(checkpoint: Checkpoint, folder: Path) -> ImageFeed:
    encoder = HashEncoder(PRESETS["tiny"].text)
    return ImageFeed(squares(), checkpoint.tokenizer, encoder, folder, batch=8, seed=0)


def test_distillation_makes_few_steps_exact_and_resumes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The same head after 120 steps, in one run or in two, is many times closer in 1 to 4 steps than Euler's method."""
    feed = feed_of(checkpoint, tmp_path)
    run = prepare(checkpoint, feed, Clock(steps=120, minutes=0), ema=0.98, seed=0)
    losses = distill(run, tmp_path / "whole.pt", progress=False)
    assert losses[-1] < 0.5 * losses[0]
    errors = compare(run, distilled_model(run).diffusion_head, tokens=64)
    for heads in errors.values():
        euler, mean_flow = heads["flow"], heads["mean flow"]
        assert all(after < 0.5 * before for before, after in zip(euler[:4], mean_flow[:4], strict=True)), errors

    first = prepare(checkpoint, feed, Clock(steps=50, minutes=0), ema=0.98, seed=0)
    first.learner.clock.steps = 120  # the rate of learning is that of the whole run
    stop = iter(range(50))
    first.feed = Interrupted(feed, stop)
    with pytest.raises(KeyboardInterrupt):
        distill(first, tmp_path / "parts.pt", progress=False)
    second = prepare(checkpoint, feed, Clock(steps=120, minutes=0), ema=0.98, seed=0)
    assert distill(second, tmp_path / "parts.pt", progress=False) == losses  # those before it as well
    for name, value in run.student.state_dict().items():
        assert torch.equal(value, second.student.state_dict()[name]), name


def test_a_head_of_other_weights_is_not_taken_over(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A finished state in --out was written once more as the head of whatever --checkpoint named."""
    feed = feed_of(checkpoint, tmp_path)
    distill(prepare(checkpoint, feed, Clock(1, 0), ema=0.9, seed=0), tmp_path / "state.pt", progress=False)
    other = replace(checkpoint, sha256="1" * 64)
    with pytest.raises(ConfigError, match=rf"holds a head of the weights {checkpoint.sha256}, not of 1111.* or remove"):
        distill(prepare(other, feed, Clock(1, 0), ema=0.9, seed=0), tmp_path / "state.pt", progress=False)


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
    assert written.about["name"] == "bent-few-steps" and written.about["few_steps"]["of"] == checkpoint.sha256
    assert "sampling" not in written.about
    with pytest.raises(ConfigError, match="a mean-flow head, whose loss does not compare"):
        validation_loss(written, {}, 8, torch.device("cpu"))
    assert default_sampling(written.config)["presets"]["medium"]["diffusion_steps"] == 4
    assert sampling_limits(written.config)["max_guidance_scale"] == 8
    assert set(json.loads((out / "errors.json").read_text())["errors"]) == {f"guidance {scale}" for scale in (1, 3, 6)}
    assert (out / "errors.svg").exists() and "mean flow" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is one of those that are read"):  # they were overwritten
        command.main(
            ["--recipe", "model/recipes/emoji-64.toml", "--checkpoint", f"{out}/checkpoint", "--out", str(out)]
        )
    assert load_checkpoint(out / "checkpoint").sha256 == written.sha256
    with pytest.raises(SystemExit, match="no recipe"):
        command.main(["--recipe", "nowhere.toml", "--out", str(out)])
