"""Train a Fluid model: `python -m model.training --recipe model/recipes/emoji-64.toml`.

Runs on a CPU and on one GPU unchanged. Shows loss, pictures per second and time left; draws a sheet of fixed prompts
every so often; saves its whole state every few steps, so that the same command goes on where a kill left off.
When the budget is used up it writes the averaged weights as a checkpoint (model/checkpoint.py).

    make train                                        the shipped recipe
    python -m model.training --minutes 5 --out runs/try  the same, shorter and elsewhere
    python -m model.training --leg-minutes 8             stop after 8 minutes; the next call goes on (portable_run.py)
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import save_checkpoint
from model.data.contact_sheet import contact_sheet
from model.inference.generate import generate
from model.inference.requests import Sampling
from model.networks.random_order_model import Fluid
from model.networks.tokenizer import PcaSkipTokenizer, to_uint8
from model.training.loop import train
from model.training.recipe import Recipe
from model.training.run import Run, prepare


@torch.no_grad()
def draw_sheet(run: Run, tokenizer: PcaSkipTokenizer, file: Path) -> None:
    """32 fixed training prompts with the averaged weights, each above the picture it should resemble."""
    averaged, bank = Fluid(run.config).to(run.device).eval(), run.feed.bank
    run.learner.ema.copy_to(averaged)
    rows = torch.linspace(0, len(run.feed) - 1, 32).long()
    states, mask = bank.states[rows, 0].float().to(run.device), bank.mask[rows, 0].to(run.device)
    text = averaged.backbone.encode_text(states, mask)
    null = averaged.backbone.encode_text(bank.null_states.to(run.device), bank.null_mask.to(run.device))
    tokens = generate(averaged, text, null, torch.arange(32, device=run.device), Sampling())
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
