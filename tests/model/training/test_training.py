"""Training: the loss can reach zero, a killed run resumes exactly, the tokenizer starts at PCA."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.config import ConfigError
from model.data.dataset import DataError, Dataset
from model.diffusion import make_schedule
from model.inference.orders import training_masks
from model.networks.autoregressive_model import Fluid
from model.networks.text_encoder import HashEncoder
from model.networks.tokenizer import PcaSkipTokenizer, psnr, to_pixels, to_uint8
from model.presets import PRESETS
from model.training.recipe import Recipe
from model.training.train import main
from model.training.train_tokenizer import train as train_tokenizer
from model.training.trainer import Clock, Ema, Learner, learning_rate, load_state
from tests.model.image_set import squares

RECIPE = Path("model/recipes/emoji-64.toml")


@pytest.mark.slow
def test_loss_goes_to_zero_on_a_single_batch() -> None:
    """When the text identifies each of four images, tokens and therefore v are exactly predictable."""
    torch.manual_seed(0)
    config = replace(PRESETS["tiny"], width=64, head_width=96)
    model, encoder = Fluid(config), HashEncoder(config.text)
    tokens, schedule, rng = torch.randn(4, 16, 4), make_schedule(), torch.Generator().manual_seed(0)
    states, mask = encoder.encode(["red", "green", "blue", "black"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses, steps = [], 500
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 30) * (1 - step / steps)
        masked = training_masks(4, 16, rng)
        shape = (12, int(masked.sum()))
        index, noise = torch.randint(1000, shape, generator=rng), torch.randn(*shape, 4, generator=rng)
        text = model.backbone.encode_text(states, mask)
        loss = model.loss(schedule, tokens, masked, text, index, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.8  # a head that starts at zero predicts nothing: E|v|² is about 1
    assert sum(losses[-20:]) / 20 < 0.03


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the squares, a tokenizer trained for a moment, and a recipe of 60 steps."""
    folder = tmp_path_factory.mktemp("workshop")
    dataset = squares()
    dataset.save(folder / "data")
    subprocess.run(
        [sys.executable, "-m", "model.training.train_tokenizer", "--preset", "tiny", "--data", folder / "data", "--out",
         folder / "tokenizer", "--minutes", "0", "--steps", "20", "--batch", "8"],
        check=True, capture_output=True,
    )  # fmt: skip
    text = RECIPE.read_text().replace("compile = true", "compile = false")
    (folder / "recipe.toml").write_text(text)
    return folder


def _command(workshop: Path, out: str) -> list[str]:
    flags = {
        "preset": "tiny", "data": workshop / "data", "tokenizer": workshop / "tokenizer/tokenizer.safetensors",
        "out": workshop / out, "minutes": 0, "steps": 60, "batch": 8, "save-every": 5, "sheet-every": 1000,
    }  # fmt: skip
    listed = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "model.training", "--recipe", str(workshop / "recipe.toml"), *listed]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(workshop: Path) -> None:
    """SIGKILL at some step, then the same command again: weights equal those of an uninterrupted run."""
    subprocess.run(_command(workshop, "whole"), check=True, capture_output=True)
    process = subprocess.Popen(_command(workshop, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (workshop / "killed" / "state.pt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = load_state(workshop / "killed" / "state.pt")
    assert saved is not None and saved["step"] >= 5
    done = subprocess.run(_command(workshop, "killed"), check=True, capture_output=True, text=True)
    assert f"at step {saved['step']}" in done.stdout
    digests = [
        json.loads((workshop / run / "checkpoint" / "config.json").read_text())["sha256"] for run in ("whole", "killed")
    ]
    assert digests[0] == digests[1]


def test_a_run_leaves_sheet_curve_and_a_loadable_checkpoint(workshop: Path) -> None:
    from model.checkpoint import load_checkpoint

    subprocess.run(_command(workshop, "whole"), check=True, capture_output=True)
    assert (workshop / "whole" / "sheet-final.png").stat().st_size > 1000
    history = json.loads((workshop / "whole" / "history.json").read_text())
    assert [entry[0] for entry in history] == list(range(5, 61, 5))
    checkpoint = load_checkpoint(workshop / "whole" / "checkpoint")
    assert checkpoint.about["vocabulary"][0] == "red left" and checkpoint.config == PRESETS["tiny"]
    other = subprocess.run([*_command(workshop, "whole"), "--optimizer", "muon"], capture_output=True, text=True)
    assert other.returncode == 1 and "holds a run with another preset, optimizer" in other.stderr
    assert "Traceback" not in other.stderr


def test_learning_rate_warms_up_holds_and_anneals() -> None:
    def at(step: int) -> float:
        return learning_rate(1.0, Clock(steps=1000, minutes=0, step=step), warmup=100, anneal_from=0.5)

    assert at(0) == pytest.approx(0.01) and at(99) == 1.0 and at(500) == 1.0
    assert at(750) == pytest.approx(0.51) and at(1000) == pytest.approx(0.02)


def test_the_annealing_phase_ends_the_run_whenever_it_begins() -> None:
    """The number of hours to come is unknown: the phase comes last by itself, or when it is asked for."""

    def rate(clock: Clock) -> float:
        return learning_rate(1.0, clock, warmup=1, anneal_from=0.1)

    clock = Clock(steps=10**6, minutes=100, anneal_minutes=10, step=5, seconds=60 * 89)
    assert rate(clock) == 1.0 and clock.progress == pytest.approx(0.89)
    clock.seconds = 60 * 90
    clock.tick()
    assert 60 * 90 <= clock.annealing < 60 * 91
    clock.seconds = clock.annealing + 300
    assert rate(clock) == pytest.approx(0.51) and clock.progress == pytest.approx(0.95)

    early = Clock(steps=10**6, minutes=100, anneal_minutes=10, step=5, seconds=60 * 20)
    early.anneal()
    early.seconds += 600
    assert rate(early) == pytest.approx(0.02) and early.progress == 1.0
    early.anneal()
    assert early.annealing == 60 * 20  # asking twice does not begin it again


def test_a_budget_without_time_before_the_annealing_is_refused() -> None:
    """`--minutes 10` with a phase of 150 minutes annealed from the first step on, for 150 minutes."""
    recipe = Path("model/recipes/atlas-128.toml")
    with pytest.raises(ConfigError, match="minutes = 10 leaves nothing before anneal_minutes = 150"):
        Recipe.load(recipe, minutes=10.0)
    assert Recipe.load(recipe, minutes=10.0, anneal_minutes=0.0).minutes == 10


def test_a_recipe_without_a_name_is_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text(RECIPE.read_text().replace("name = ", "# ", 1))
    assert Recipe.load(tmp_path / "old.toml").name == ""


def test_steps_that_are_not_finite_change_nothing() -> None:
    """One such loss made all weights and their average NaN, and the next save replaced the last good state by them."""
    module = torch.nn.Linear(2, 1)
    learner = Learner(module, Ema(module, 0.9), torch.optim.SGD(module.parameters(), lr=0.1), Clock(100, 0.0))
    before = module.weight.detach().clone()
    learner.update(module(torch.full((1, 2), float("nan"))).sum(), 0.1, clip=1.0)
    assert torch.equal(module.weight, before) and learner.clock.step == 1
    learner.update(module(torch.ones(1, 2)).sum(), 0.1, clip=1.0)
    assert not torch.equal(module.weight, before) and module.weight.isfinite().all()
    with pytest.raises(ConfigError, match="20 steps in a row are not finite"):
        for _ in range(20):
            learner.update(module(torch.full((1, 2), float("inf"))).sum() * 0, 0.1, clip=1.0)


def test_a_step_starts_the_next_batch_before_its_gradients_are_waited_for() -> None:
    """Gradients are on their way then, and the weights are still those of the step before."""
    module = torch.nn.Linear(2, 1)
    learner = Learner(module, Ema(module, 0.9), torch.optim.SGD(module.parameters(), lr=0.1), Clock(100, 0.0))
    before, seen = module.weight.detach().clone(), []

    def look() -> None:
        seen.append((module.weight.grad is not None, torch.equal(module.weight, before)))

    learner.update(module(torch.ones(1, 2)).sum(), 0.1, clip=1.0, meanwhile=look)
    assert seen == [(True, True)] and not torch.equal(module.weight, before)


def test_processor_time_does_not_count_waiting() -> None:
    """On a shared machine the time of day would end the run long before its share of work is done."""
    began = time.process_time()
    clock = Clock(steps=10, minutes=1, cpu=True)
    time.sleep(0.2)
    clock.tick()
    assert clock.seconds <= time.process_time() - began


def test_ema_follows_and_ramps() -> None:
    """With a constant decay of 0.999, ten steps would leave 99 % of the initial weights."""
    layer = torch.nn.Linear(1, 1)
    ema = Ema(layer, 0.999)
    torch.nn.init.constant_(layer.weight, 5.0)
    for _ in range(10):
        ema.update(layer)
    ema.copy_to(layer)
    assert layer.weight.item() > 4.5


def test_tokenizer_starts_at_pca_and_normalises() -> None:
    """Without training it must reach about the PSNR of PCA, and latents of unit variance."""
    pixels = to_pixels(torch.from_numpy(squares().images))
    tokenizer = PcaSkipTokenizer(PRESETS["tiny"].tokenizer).eval()
    before = psnr(tokenizer.decode(tokenizer.encode(pixels)), pixels).mean()
    tokenizer.start_from_pca(pixels)
    tokenizer.fit_normalisation(pixels)
    z = tokenizer.encode(pixels)
    after = psnr(tokenizer.decode(z), pixels).mean()
    assert z.shape == (8, 16, 4) and after > before + 10 and after > 20
    assert abs(z.std().item() - 1) < 0.05 and z.mean((0, 1)).abs().max() < 1e-4


def test_pixels_survive_conversion_to_tensors_and_back() -> None:
    images = torch.from_numpy(squares().images)
    assert torch.equal(to_uint8(to_pixels(images)), images)


def test_recipe_errors_name_the_key(tmp_path: Path) -> None:
    text = RECIPE.read_text()
    for bad, message in (
        (text.replace("batch = 64", "batchsize = 64"), "unknown key 'batchsize'"),
        (text.replace("warmup = 150", ""), "missing key 'warmup'"),
        (text.replace('preset = "emoji-64"', 'preset = "huge"'), "preset 'huge' is not one of"),
        (text.replace("batch = 64", 'batch = "64"'), "batch = '64' must be a whole number"),
        (text.replace("warmup = 150", "warmup = 0"), "warmup = 0 must be more than 0"),
        (text.replace("text_drop = 0.1", "text_drop = 1.5"), "text_drop = 1.5 must be from 0 to 1"),
        (text.replace("halton_masks = 0.0", "halton_masks = -0.1"), "halton_masks = -0.1 must be from 0 to 1"),
        (
            text.replace("halton_masks = 0.0", "halton_masks = 0.5").replace("emoji-64", "compare-raster-continuous"),
            "halton_masks must be 0: compare-raster-continuous predicts every token in raster order",
        ),
        (
            text.replace("gtr_masks = 0.0", "gtr_masks = 0.5").replace("emoji-64", "compare-raster-continuous"),
            "gtr_masks must be 0: compare-raster-continuous predicts every token in raster order",
        ),
        (
            text.replace("gtr_masks = 0.0", "gtr_masks = 0.6").replace("halton_masks = 0.0", "halton_masks = 0.5"),
            "halton_masks = 0.5 and gtr_masks = 0.6 are shares of the same images; their sum must be at most 1",
        ),
        (text.replace("batch = 64", "batch = = 64"), "is no TOML"),
    ):
        (tmp_path / "r.toml").write_text(bad)
        with pytest.raises(ConfigError, match=message):
            Recipe.load(tmp_path / "r.toml")


def test_missing_data_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `make data` first"):
        Dataset.load(tmp_path)


def test_help_explains_every_key_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("usage: python -m model.training ")
    for key in fields(Recipe):
        assert key.name == "scenes" or f"--{key.name.replace('_', '-')} " in told
    assert "share of the budget after which the learning rate falls linearly" in told


def test_command_line_reports_errors_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no tokenizer at .*`make train RECIPE=.*model\.training\.train_tokenizer"):
        main(["--recipe", str(RECIPE), "--tokenizer", str(tmp_path / "none"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no recipe .*none\.toml"):
        main(["--recipe", str(tmp_path / "none.toml")])


def test_training_the_decoder_alone_keeps_the_tokens(workshop: Path, tmp_path: Path) -> None:
    """A model of hours of training reads these tokens: a better decoder must not move them."""
    file = workshop / "tokenizer" / "tokenizer.safetensors"
    before = PcaSkipTokenizer(PRESETS["tiny"].tokenizer)  # type: ignore[arg-type]
    before.load_state_dict(load_file(file))
    after = train_tokenizer("tiny", squares(), tmp_path, 0.0, 5, 8, 0, noise_max=0.5, seam_weight=0.1, decoder_of=file,
                            progress=False)  # fmt: skip
    pixels = to_pixels(torch.from_numpy(squares().images))
    assert torch.equal(before.encode(pixels), after.encode(pixels))
    assert not torch.equal(before.synthesis.weight, after.synthesis.weight)
