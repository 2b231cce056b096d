"""Train a model from a recipe, on a CPU, on one GPU, or on several.

    make train                                         the shipped recipe, with its tokenizer
    python -m model.training --recipe model/recipes/scenes-128.toml
    python -m model.training --minutes 5 --out runs/short      the default recipe, shorter and elsewhere
    python -m model.training --stop-after-minutes 30   stop there; the same command resumes
    python -m model.training --anneal-minutes 10 --anneal-now     resume, anneal for ten minutes, and end there
    torchrun --nproc-per-node 2 -m model.training      the same run on two devices; any number of ranks resumes it

Shows loss, images per second and time left, writes sample sheets of fixed prompts and saves the whole state, so that
the same command resumes after a kill. When the budget is used up, OUT/checkpoint holds the averaged weights, which
`fluid generate --checkpoint OUT/checkpoint` and `python -m model.evaluation` load. model/training/recipe.py explains
every key of a recipe.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import torch.distributed

from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.data.interrupts import interruptible
from model.data.sources import DataError
from model.networks.factory import AnyTokenizer
from model.process_group import Group, join_group, leave_group, started_in_group
from model.training.command.flags import amount
from model.training.command.machine import within_memory
from model.training.distributed.folders import newest
from model.training.loop import train
from model.training.outputs import save_sheet, write_checkpoint
from model.training.recipe import Recipe
from model.training.run import Run, prepare


def parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() == "true"


def build_parser() -> argparse.ArgumentParser:
    """The command line: one flag for every top-level key of a recipe, explained by the key's annotation."""
    parser = argparse.ArgumentParser(
        prog="python -m model.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recipe", type=Path, default=Path("model/recipes/emoji-64.toml"), help="TOML file (%(default)s)"
    )
    parser.add_argument("--stop-after-minutes", type=amount, metavar="MINUTES", default=float("inf"),
                        help="save and stop this process then; default: run until the budget is used up")  # fmt: skip
    parser.add_argument("--anneal-now", action="store_true",
                        help="begin the annealing phase now: for recipes with anneal_minutes")  # fmt: skip
    overrides = parser.add_argument_group("keys of the recipe", "each overrides the file's value")
    types, annotated = get_type_hints(Recipe), get_type_hints(Recipe, include_extras=True)
    for key in (field.name for field in fields(Recipe) if field.name != "scenes"):
        overrides.add_argument(
            f"--{key.replace('_', '-')}", type=parse_bool if types[key] is bool else types[key],
            metavar=types[key].__name__.upper(), help=annotated[key].__metadata__[0],
        )  # fmt: skip
    return parser


def run_recipe(recipe: Recipe, until: float, anneal_now: bool = False, group: Group | None = None) -> None:
    """Train from the recipe until its budget is used up or time.monotonic() passes `until`; resume if there is a state.

    Args:
        anneal_now: begin the annealing phase before the first step.
        group: the ranks that train together.

    Raises:
        ConfigError, DataError, CheckpointError: something that the recipe names is missing or does not fit.
    """
    if anneal_now and not recipe.anneal_minutes:
        raise ConfigError("--anneal-now needs a recipe with an annealing phase: set --anneal-minutes")
    run, tokenizer = _prepare_in_turn(recipe, group)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    report: Callable[[str], None] = print if run.leads else lambda text: None
    if run.resume():
        if scale := run.started_from.get("scale"):  # its checkpoint would no longer say that it holds guidance
            raise ConfigError(
                f"{out} holds a guidance distillation: resume it by `python -m model.training.guidance_distillation "
                f"--scale {scale:g}` with this recipe, or choose another --out"
            )
        report(f"resuming {out} at step {run.clock.step}")
        if run.clock.progress >= 1:
            more = "--anneal-minutes" if run.clock.annealing is not None else "--minutes or --steps"
            report(f"its budget is used up: give more {more}, or go on from its weights, --start-from {out}/checkpoint")
    if anneal_now:
        run.clock.anneal()
    first_step, first_seconds = run.clock.step, run.clock.seconds
    shown = first_step // recipe.sheet_every
    for step in train(run, until=until, save_soon=anneal_now):
        if run.leads:
            (out / "history.json").write_text(json.dumps(run.history))
        if step // recipe.sheet_every > shown:  # states need not be saved at just these steps
            shown = step // recipe.sheet_every
            save_sheet(run, tokenizer, out / f"sheet-{step:06d}.png")
            write_checkpoint(run, tokenizer)  # may be annealed elsewhere, or serve as it is
            run.clock.resync()
    save_sheet(run, tokenizer, out / "sheet-final.png")
    report(f"checkpoint in {write_checkpoint(run, tokenizer)}, sheets and curve in {out}")
    steps, seconds = run.clock.step - first_step, max(run.clock.seconds - first_seconds, 1e-9)
    pace, waiting = steps * recipe.batch / seconds, run.data_wait_s / seconds
    report(f"{steps} steps, {pace:.0f} images/s, {waiting:.0%} of the time spent waiting for data")
    if run.clock.progress < 1:
        report(f"{run.clock.progress:.0%} of the budget is used up: the same command resumes from here")


def _prepare_in_turn(recipe: Recipe, group: Group | None) -> tuple[Run, AnyTokenizer]:
    """Prepare on rank 0 first: the files that it leaves (captions, pretraining) spare the others the work."""
    if group is None:
        if newest(recipe.state_file) is not None and not recipe.state_file.exists():
            raise ConfigError(
                f"{recipe.out} holds the state of a run on several devices: resume it by "
                "`torchrun --nproc-per-node 1 -m model.training` with the same flags, or choose another --out"
            )
        return prepare(recipe)
    if not group.leads:
        torch.distributed.barrier()
    try:
        return prepare(recipe, group)
    finally:
        if group.leads:
            torch.distributed.barrier()


@interruptible("the same command resumes from the last saved state")
def main(argv: list[str] | None = None) -> None:
    began = time.monotonic()
    overrides = vars(build_parser().parse_args(argv))
    until = began + 60 * overrides.pop("stop_after_minutes")
    anneal_now = overrides.pop("anneal_now")
    try:
        recipe = Recipe.load(overrides.pop("recipe"), **overrides)
        with within_memory("lower --batch or noise_draws; the same command resumes"):
            run_recipe(recipe, until, anneal_now, join_group() if started_in_group() else None)
    except (ConfigError, DataError, CheckpointError) as error:
        sys.exit(str(error))
    finally:
        leave_group()
