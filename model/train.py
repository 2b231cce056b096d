"""Train a Fluid model: `python -m model.train --recipe model/recipes/emoji-64.toml`.

Runs on a CPU and on one GPU unchanged. Shows loss, pictures per second and time left; draws a sheet of fixed prompts
every so often; saves its whole state every few steps, so that the same command goes on where a kill left off.
When the budget is used up it writes the averaged weights as a checkpoint (model/checkpoint.py).

    make train                                        the shipped recipe
    python -m model.train --minutes 5 --out runs/try  the same, shorter and elsewhere
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from model.checkpoint import save_checkpoint
from model.config import PRESETS, ConfigError, FluidConfig
from model.data.dataset import Dataset
from model.diffusion import Schedule, make_schedule
from model.fluid import Fluid
from model.generate import Settings, generate
from model.masking import training_masks
from model.sheet import contact_sheet
from model.text import build_text_encoder
from model.textbank import TextBank, build_text_bank
from model.tokenizer import PcaSkipTokenizer, new_tokenizer, to_pixels, to_uint8
from model.training import Clock, Ema, decay_groups, generator, learning_rate, load_state, save_state


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs to know; the comments are in the recipe file."""

    preset: str
    data: str
    tokenizer: str
    out: str
    minutes: float
    steps: int
    batch: int
    noise_draws: int
    learning_rate: float
    weight_decay: float
    warmup: int
    anneal_from: float
    clip: float
    ema: float
    text_drop: float
    sheet_every: int
    save_every: int
    seed: int
    compile: bool

    @classmethod
    def load(cls, path: Path, **overrides: object) -> Recipe:
        """Read a TOML recipe; every key must be there and known.

        Raises:
            ConfigError: names the key.
        """
        raw = {**tomllib.loads(path.read_text()), **{k: v for k, v in overrides.items() if v is not None}}
        names = {f.name for f in fields(cls)}
        for problem, keys in (("unknown", set(raw) - names), ("missing", names - set(raw))):
            if keys:
                raise ConfigError(f"{path}: {problem} key {sorted(keys)[0]!r}; a recipe has {sorted(names)}")
        if raw["preset"] not in PRESETS:
            raise ConfigError(f"{path}: preset {raw['preset']!r} is not one of {sorted(PRESETS)}")
        return cls(**raw)


@dataclass
class Run:
    """The moving parts of a training."""

    recipe: Recipe
    config: FluidConfig
    model: Fluid
    ema: Ema
    optimizer: torch.optim.Optimizer
    clock: Clock
    schedule: Schedule
    latents: Tensor  # (P, N, C) of the training pictures
    bank: TextBank
    device: torch.device
    history: list[list[float]]  # [step, seconds, loss]

    @property
    def state_file(self) -> Path:
        return Path(self.recipe.out) / "state.pt"

    def save(self) -> None:
        save_state(
            self.state_file, model=self.model.state_dict(), ema=self.ema.state_dict(),
            optimizer=self.optimizer.state_dict(), step=self.clock.step, seconds=self.clock.seconds,
            history=self.history,
        )  # fmt: skip

    def resume(self) -> bool:
        state = load_state(self.state_file)
        if state is None:
            return False
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.clock.step, self.clock.seconds, self.history = state["step"], state["seconds"], state["history"]
        return True


def load_tokenizer(config: FluidConfig, path: str) -> PcaSkipTokenizer:
    """The trained tokenizer of a run, strictly loaded.

    Raises:
        ConfigError: it has not been trained yet.
    """
    if not Path(path).exists():
        raise ConfigError(f"no tokenizer at {path}: run `python -m model.train_tokenizer` first")
    tokenizer = new_tokenizer(config)
    tokenizer.load_state_dict(load_file(path))
    return tokenizer.eval()


@torch.no_grad()
def encode_pictures(tokenizer: PcaSkipTokenizer, images: Tensor, batch: int = 128) -> Tensor:
    """(P, H, W, 3) uint8 -> (P, N, C): the pictures do not change, so they are encoded once."""
    return torch.cat([tokenizer.encode(to_pixels(part)) for part in images.split(batch)])


def prepare(recipe: Recipe) -> tuple[Run, Dataset, PcaSkipTokenizer]:
    """Everything before the first step."""
    config, device = PRESETS[recipe.preset], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset, tokenizer = (
        Dataset.load(Path(recipe.data)),
        load_tokenizer(config, recipe.tokenizer),
    )
    rows = torch.from_numpy(dataset.indices("train"))
    latents = encode_pictures(tokenizer, torch.from_numpy(dataset.images[rows]))
    bank = build_text_bank(build_text_encoder(config.text), dataset, rows, Path(recipe.data))
    torch.manual_seed(recipe.seed)
    model = Fluid(config).to(device)
    groups = decay_groups(model, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    run = Run(
        recipe, config, model, Ema(model, recipe.ema), optimizer, Clock(recipe.steps, recipe.minutes),
        make_schedule().to(device), latents, bank, device, [],
    )  # fmt: skip
    return run, dataset, tokenizer


def epoch_order(pictures: int, batch: int, step: int, seed: int) -> Tensor:
    """Which pictures step `step` trains on: every picture once an epoch, a new order each epoch."""
    per_epoch = max(1, pictures // batch)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(pictures, generator=generator(seed + 1, epoch))
    return order[place * batch : (place + 1) * batch]


def train_step(run: Run) -> float:
    """One optimiser step; all its randomness comes from (seed, step). Returns the loss."""
    recipe, clock = run.recipe, run.clock
    rng = generator(recipe.seed, clock.step)
    rows = epoch_order(len(run.latents), recipe.batch, clock.step, recipe.seed)
    states, mask = run.bank.draw(rows, recipe.text_drop, rng)
    masked = training_masks(len(rows), run.config.tokens, rng)
    shape = (recipe.noise_draws, int(masked.sum()))
    index = torch.randint(len(run.schedule), shape, generator=rng)
    noise = torch.randn(*shape, run.config.channels, generator=rng)
    tokens, states, mask, masked, index, noise = (
        t.to(run.device) for t in (run.latents[rows], states, mask, masked, index, noise)
    )
    with torch.autocast(run.device.type, torch.bfloat16):
        text = run.model.backbone.encode_text(states, mask)
        loss = run.model.loss(run.schedule, tokens, masked, text, index, noise)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(recipe.learning_rate, clock, recipe.warmup, recipe.anneal_from)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip)
    run.optimizer.step()
    run.ema.update(run.model)
    clock.tick()
    return loss.item()


def train(run: Run, progress: bool = True) -> Iterator[int]:
    """Steps until the budget is used up; yields the step number after each save, for sheets and tests."""
    recipe, clock = run.recipe, run.clock
    if recipe.compile:
        # Bound methods, so that parameter names in the state dict stay as they are.
        run.model.backbone.forward = torch.compile(run.model.backbone.forward)  # type: ignore[method-assign]
        run.model.head.forward = torch.compile(run.model.head.forward, dynamic=True)  # type: ignore[method-assign]
    bar = tqdm(initial=clock.step, desc="train", unit="step", disable=not progress, mininterval=1.0)
    recent: list[float] = []
    while clock.progress < 1:
        recent.append(train_step(run))
        bar.update()
        if clock.step % recipe.save_every == 0 or clock.progress >= 1:
            mean, recent = sum(recent) / len(recent), []
            run.history.append([clock.step, clock.seconds, mean])
            pace = clock.step * recipe.batch / clock.seconds
            left = clock.seconds_left / 60
            bar.set_postfix_str(f"loss {mean:.4f}, {pace:.0f} img/s, {left:.0f} min left")
            run.save()
            yield clock.step
    bar.close()


@torch.no_grad()
def draw_sheet(run: Run, tokenizer: PcaSkipTokenizer, dataset: Dataset, file: Path) -> None:
    """32 fixed training prompts with the averaged weights, each above the picture it should resemble."""
    averaged = Fluid(run.config).to(run.device).eval()
    run.ema.copy_to(averaged)
    rows = torch.linspace(0, len(run.latents) - 1, 32).long()
    states, mask = run.bank.states[rows, 0].float().to(run.device), run.bank.mask[rows, 0].to(run.device)
    text = averaged.backbone.encode_text(states, mask)
    null = averaged.backbone.encode_text(run.bank.null_states.to(run.device), run.bank.null_mask.to(run.device))
    tokens = generate(averaged, text, null, torch.arange(32, device=run.device), Settings())
    drawn = to_uint8(tokenizer.decode(tokens.cpu()))
    pictures, labels = [], []
    for start in range(0, 32, 8):
        source = dataset.indices("train")[rows[start : start + 8]]
        pictures += [*drawn[start : start + 8].numpy(), *dataset.images[source]]
        labels += [dataset.items[i].captions[0] for i in source] + ["(training picture)"] * 8
    contact_sheet(pictures, labels, columns=8, scale=2).save(file)


def write_checkpoint(run: Run, tokenizer: PcaSkipTokenizer, dataset: Dataset) -> Path:
    """The averaged weights and what is known about them, under OUT/checkpoint."""
    averaged = Fluid(run.config)
    run.ema.copy_to(averaged)
    about = {
        "name": run.recipe.preset,
        "training": {
            "steps": run.clock.step, "minutes": round(run.clock.seconds / 60, 1), "batch": run.recipe.batch,
            "pictures": len(run.latents), "epochs": round(run.clock.step * run.recipe.batch / len(run.latents), 1),
            "final_loss": round(run.history[-1][2], 4) if run.history else None,
        },
        "data": dataset.about,
        "vocabulary": dataset.concepts("train"),
        "styles": list(dict.fromkeys(item.style for item in dataset.items)),
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
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=kinds[str(f.type)], help="override the recipe's")
    overrides = vars(parser.parse_args(argv))
    recipe = Recipe.load(overrides.pop("recipe"), **overrides)

    run, dataset, tokenizer = prepare(recipe)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    if run.resume():
        print(f"resuming {out} at step {run.clock.step}")
    for step in train(run):
        (out / "history.json").write_text(json.dumps(run.history))
        if step % recipe.sheet_every == 0:
            draw_sheet(run, tokenizer, dataset, out / f"sheet-{step:06d}.png")
            run.clock.resync()
    draw_sheet(run, tokenizer, dataset, out / "sheet-final.png")
    print(f"checkpoint in {write_checkpoint(run, tokenizer, dataset)}, sheets and curve in {out}")


if __name__ == "__main__":
    main()
