"""Train a Fluid model: `python -m model.train --recipe model/recipes/emoji-64.toml`.

Runs on a CPU and on one GPU unchanged. Shows loss, pictures per second and time left; draws a sheet of fixed prompts
every so often; saves its whole state every few steps, so that the same command goes on where a kill left off.
When the budget is used up it writes the averaged weights as a checkpoint (model/checkpoint.py).

    make train                                        the shipped recipe
    python -m model.train --minutes 5 --out runs/try  the same, shorter and elsewhere
    python -m model.train --leg-minutes 8             stop after 8 minutes; the next call goes on (model/legs.py)
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import PRESETS, ConfigError, FluidConfig
from model.data.dataset import Dataset
from model.diffusion import Schedule, make_schedule
from model.feeds import Feed, PictureFeed, SceneFeed, open_bank
from model.fluid import Fluid
from model.generate import Settings, generate
from model.layout import LayoutHead
from model.masking import training_masks
from model.precision import autocast
from model.reading import read
from model.recipe import Recipe
from model.sheet import contact_sheet
from model.text import build_text_encoder
from model.tokenizer import PcaSkipTokenizer, new_tokenizer, to_uint8
from model.training import Clock, Ema, Learner, decay_groups, generator, learning_rate


@dataclass
class Run:
    """The moving parts of a training."""

    recipe: Recipe
    config: FluidConfig
    model: Fluid
    learner: Learner
    schedule: Schedule
    feed: Feed
    device: torch.device
    layout: LayoutHead | None = None  # the extra lesson of scenes
    history: list[list[float]] = field(default_factory=list)  # [step, seconds, loss]
    waited: float = 0.0  # seconds of this process without a picture to train on

    @property
    def clock(self) -> Clock:
        return self.learner.clock

    def save(self) -> None:
        lesson = {"layout": self.layout.state_dict()} if self.layout else {}
        self.learner.save(self.recipe.state_file, history=self.history, **lesson)

    def resume(self) -> bool:
        state = self.learner.resume(self.recipe.state_file)
        if state is not None:
            self.history = state["history"]
            if self.layout:
                self.layout.load_state_dict(state["layout"])
        return state is not None


def load_tokenizer(config: FluidConfig, path: str) -> PcaSkipTokenizer:
    """A trained tokenizer, strictly loaded: the file of a run, or the folder of a checkpoint, which has its own.

    Raises:
        ConfigError: it has not been trained yet, or is of another size.
    """
    if Path(path).is_dir():
        checkpoint = load_checkpoint(Path(path))
        if checkpoint.config.tokenizer != config.tokenizer or not isinstance(checkpoint.tokenizer, PcaSkipTokenizer):
            raise ConfigError(f"the tokenizer of {path} has other sizes than preset asks for: {config.tokenizer}")
        return checkpoint.tokenizer
    if not Path(path).exists():
        raise ConfigError(f"no tokenizer at {path}: run `python -m model.train_tokenizer` first")
    tokenizer = new_tokenizer(config)
    tokenizer.load_state_dict(load_file(path))
    return tokenizer.eval()


def open_feed(recipe: Recipe, config: FluidConfig, tokenizer: PcaSkipTokenizer, device: torch.device) -> Feed:
    """Pictures and captions as the recipe wants them."""
    folder, encoder = Path(recipe.data), build_text_encoder(config.text, recipe.text_encoder).to(device)
    if recipe.scenes is None:
        return PictureFeed(Dataset.load(folder), tokenizer, encoder, folder, recipe.batch, recipe.seed)
    loaders = recipe.scenes.loaders
    return SceneFeed(open_bank(recipe), tokenizer, encoder, folder, recipe.batch, recipe.seed, loaders, device)


def prepare(recipe: Recipe) -> tuple[Run, PcaSkipTokenizer]:
    """Everything before the first step."""
    config, device = PRESETS[recipe.preset], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(config, recipe.tokenizer)
    feed = open_feed(recipe, config, tokenizer, device)
    torch.manual_seed(recipe.seed)
    model = Fluid(config)
    if recipe.start_from:
        start_from(model, Path(recipe.start_from))
    model.to(device)
    if isinstance(feed, SceneFeed) and recipe.scenes and not recipe.state_file.exists():
        share = read(model.backbone.aligner, feed.scenes.facts, feed.bank, recipe.scenes.reading_steps, recipe.seed)
        print(f"reading lesson: {share:.1%} of captions not used in it are read rightly")
    layout = LayoutHead(config.width).to(device) if recipe.scenes and recipe.scenes.layout else None
    groups = decay_groups(model, recipe.weight_decay)
    if layout:
        groups += decay_groups(layout, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    learner = Learner(model, Ema(model, recipe.ema), optimizer, Clock(recipe.steps, recipe.minutes))
    return Run(recipe, config, model, learner, make_schedule().to(device), feed, device, layout), tokenizer


def start_from(model: Fluid, folder: Path) -> None:
    """Take over the weights of a checkpoint of the same sizes. Optimiser and clock begin anew.

    Raises:
        ConfigError: the sizes differ.
    """
    checkpoint = load_checkpoint(folder)
    if checkpoint.config != model.config:
        raise ConfigError(
            f"start_from: {folder} has other sizes than the recipe's preset; choose the preset of {folder}"
        )
    model.load_state_dict(checkpoint.model.state_dict())


def step_loss(run: Run) -> tuple[Tensor, Tensor]:
    """The diffusion loss of the step that comes next, and what to descend: with scenes' extra lesson added.

    All randomness comes from (seed, step).
    """
    recipe, clock = run.recipe, run.clock
    rng = generator(recipe.seed, clock.step)
    began = time.perf_counter()
    rows, tokens, cells = run.feed.tokens(clock.step)
    run.waited += time.perf_counter() - began
    states, mask = run.feed.bank.draw(rows, recipe.text_drop, rng)
    masked = training_masks(len(rows), run.config.tokens, rng)
    shape = (recipe.noise_draws, int(masked.sum()))
    index = torch.randint(len(run.schedule), shape, generator=rng)
    noise = torch.randn(*shape, run.config.channels, generator=rng)
    tokens, states, mask, masked, index, noise = (
        t.to(run.device) for t in (tokens, states, mask, masked, index, noise)
    )
    with autocast(run.device):
        text = run.model.backbone.encode_text(states, mask)
        z = run.model.backbone(tokens, ~masked, text)  # (B, N, D)
        loss = run.model.token_loss(run.schedule, z, tokens, masked, index, noise)
        if run.layout is None or recipe.scenes is None or cells is None:
            return loss, loss
        lesson = run.layout.loss(z[masked], cells.to(run.device)[masked])
        return loss, loss + recipe.scenes.layout * lesson


def train_step(run: Run) -> float:
    """One optimiser step; returns the loss."""
    recipe, clock = run.recipe, run.clock
    loss, objective = step_loss(run)
    rate = learning_rate(recipe.learning_rate, clock, recipe.warmup, recipe.anneal_from)
    run.learner.update(objective, rate, recipe.clip)
    return loss.item()


def train(run: Run, progress: bool = True, until: float = float("inf")) -> Iterator[int]:
    """Steps until the budget is used up or time.monotonic() passes `until`; yields the step number after each save."""
    recipe, clock = run.recipe, run.clock
    if recipe.compile:
        # Bound methods, so that parameter names in the state dict stay as they are.
        run.model.backbone.forward = torch.compile(run.model.backbone.forward)  # type: ignore[method-assign]
        run.model.head.forward = torch.compile(run.model.head.forward, dynamic=True)  # type: ignore[method-assign]
    bar = tqdm(initial=clock.step, desc="train", unit="step", disable=not progress, mininterval=1.0)
    recent: list[float] = []
    over = clock.progress >= 1
    while not over:
        recent.append(train_step(run))
        bar.update()
        over = clock.progress >= 1 or time.monotonic() >= until
        if clock.step % recipe.save_every == 0 or over:
            mean, recent = sum(recent) / len(recent), []
            run.history.append([clock.step, clock.seconds, mean])
            pace = clock.step * recipe.batch / clock.seconds
            left = clock.seconds_left / 60
            bar.set_postfix_str(f"loss {mean:.4f}, {pace:.0f} img/s, {left:.0f} min left")
            run.save()
            yield clock.step
    bar.close()


@torch.no_grad()
def draw_sheet(run: Run, tokenizer: PcaSkipTokenizer, file: Path) -> None:
    """32 fixed training prompts with the averaged weights, each above the picture it should resemble."""
    averaged, bank = Fluid(run.config).to(run.device).eval(), run.feed.bank
    run.learner.ema.copy_to(averaged)
    rows = torch.linspace(0, len(run.feed) - 1, 32).long()
    states, mask = bank.states[rows, 0].float().to(run.device), bank.mask[rows, 0].to(run.device)
    text = averaged.backbone.encode_text(states, mask)
    null = averaged.backbone.encode_text(bank.null_states.to(run.device), bank.null_mask.to(run.device))
    tokens = generate(averaged, text, null, torch.arange(32, device=run.device), Settings())
    drawn = to_uint8(tokenizer.decode(tokens.to(tokenizer.mean.device))).cpu()
    pictures, labels = [], []
    for start in range(0, 32, 8):
        real = [run.feed.example(row) for row in rows[start : start + 8].tolist()]
        pictures += [*drawn[start : start + 8].numpy(), *(picture for picture, _ in real)]
        labels += [caption for _, caption in real] + ["(training picture)"] * 8
    contact_sheet(pictures, labels, columns=8, scale=max(1, 128 // run.config.image_size)).save(file)


def write_checkpoint(run: Run, tokenizer: PcaSkipTokenizer) -> Path:
    """The averaged weights and what is known about them, under OUT/checkpoint."""
    averaged = Fluid(run.config)
    run.learner.ema.copy_to(averaged)
    about = {
        "name": run.recipe.preset,
        "training": {
            "steps": run.clock.step, "minutes": round(run.clock.seconds / 60, 1), "batch": run.recipe.batch,
            "pictures": len(run.feed), "epochs": round(run.clock.step * run.recipe.batch / len(run.feed), 1),
            "final_loss": round(run.history[-1][2], 4) if run.history else None,
        },
        **run.feed.about,
    }  # fmt: skip
    folder = Path(run.recipe.out) / "checkpoint"
    save_checkpoint(folder, averaged, tokenizer, about)
    return folder


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() == "true"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("model/recipes/emoji-64.toml"), help="TOML file")
    kinds: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "bool": _parse_bool}
    for f in fields(Recipe):
        if f.name == "scenes":
            continue
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=kinds[str(f.type)], help="override the recipe's")
    began = time.monotonic()
    overrides = vars(parser.parse_args(argv))
    recipe = Recipe.load(overrides.pop("recipe"), **overrides)

    run, tokenizer = prepare(recipe)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    if run.resume():
        print(f"resuming {out} at step {run.clock.step}")
    first = run.clock.step, run.clock.seconds
    until = began + 60 * recipe.leg_minutes if recipe.leg_minutes else float("inf")
    for step in train(run, until=until):
        (out / "history.json").write_text(json.dumps(run.history))
        if step % recipe.sheet_every == 0:
            draw_sheet(run, tokenizer, out / f"sheet-{step:06d}.png")
            run.clock.resync()
    draw_sheet(run, tokenizer, out / "sheet-final.png")
    print(f"checkpoint in {write_checkpoint(run, tokenizer)}, sheets and curve in {out}")
    steps, seconds = run.clock.step - first[0], max(run.clock.seconds - first[1], 1e-9)
    pace, waiting = steps * recipe.batch / seconds, run.waited / seconds
    print(f"{steps} steps, {pace:.0f} pictures/s, {waiting:.0%} of the time spent on getting pictures")
    if run.clock.progress < 1:
        print(f"{run.clock.progress:.0%} of the budget is used up: the same command goes on from here")


if __name__ == "__main__":
    main()
