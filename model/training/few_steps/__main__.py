"""Distil a checkpoint's flow head into one that needs few diffusion steps.

    python -m model.training.few_steps --recipe model/recipes/atlas-128.toml --out runs/atlas-128/few-steps
    python -m model.training.few_steps --recipe RECIPE --checkpoint FOLDER --minutes 10 --out FOLDER

Reads the recipe's data and the checkpoint that the recipe's training wrote, trains a copy of its head for --minutes of
processor time, and writes OUT/checkpoint, OUT/errors.json and OUT/errors.svg: how far K steps of either head are from
100 of the first. The same command resumes after a kill.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from model.checkpoint import CheckpointError, load_checkpoint
from model.config import ConfigError, FluidConfig
from model.data.interrupts import interruptible
from model.data.sources import DataError
from model.training.command.flags import add_budget_arguments, check_out, share
from model.training.command.machine import within_memory
from model.training.few_steps.distill import distill, distilled_model, prepare, write
from model.training.few_steps.errors import COUNTS, compare
from model.training.recipe import Recipe
from model.training.run import open_feed
from model.training.trainer import Clock


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.training.few_steps", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--recipe", type=Path, required=True, help="of the training that made the checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="folder with a flow head; default: the recipe's OUT/checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder for state, checkpoint and errors")
    parser.add_argument("--name", help="of the new model, under which it is served (default: the checkpoint's, with "
                        "-few-steps behind it)")  # fmt: skip
    parser.add_argument("--ema", type=share, default=0.998, help="decay of the averaged weights (%(default)s)")
    parser.add_argument("--eight-bits", action="store_true", help="store matrices in 8 bits")
    add_budget_arguments(parser, minutes=20.0, steps=100_000, batch=16)
    return parser


def plot(errors: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Draw the errors by number of steps, a panel for each guidance scale."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(errors), figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, (title, heads) in zip(axes, errors.items(), strict=True):
        for name, values in heads.items():
            axis.plot(COUNTS, values, marker=".", label=name)
        axis.set(title=title, xlabel="diffusion steps", xscale="log", yscale="log")
        axis.set_xticks(COUNTS, [str(count) for count in COUNTS], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("error of a token, standard deviations")
    axes[0].legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


@interruptible("the same command resumes from the last saved state")
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        recipe = Recipe.load(args.recipe, batch=args.batch)
        folder = args.checkpoint or Path(recipe.out) / "checkpoint"
        check_out(args.out / "checkpoint", folder)
        checkpoint = load_checkpoint(folder)
        if not isinstance(checkpoint.config, FluidConfig):
            raise ConfigError(f"{checkpoint.folder} is of family {checkpoint.config.family!r}, not fluid")
        feed = open_feed(recipe, checkpoint.config, checkpoint.tokenizer, torch.device("cpu"))
        clock = Clock(args.steps, args.minutes, cpu=True)
        run = prepare(checkpoint, feed, clock, args.ema, args.seed, recipe.mask_orders)
        with within_memory("lower --batch"):
            losses = distill(run, args.out / "state.pt")
    except (ConfigError, DataError, CheckpointError) as error:
        sys.exit(str(error))
    model = distilled_model(run)
    name = args.name or f"{checkpoint.about['name']}-few-steps"
    write(run, model, name, args.out / "checkpoint", torch.int8 if args.eight_bits else torch.bfloat16)
    errors = compare(run, model.diffusion_head)
    (args.out / "errors.json").write_text(json.dumps({"steps": COUNTS, "errors": errors, "losses": losses}) + "\n")
    plot(errors, args.out / "errors.svg")
    for guidance, heads in errors.items():
        print(f"\n{guidance:<12}" + "".join(f"{count:>8}" for count in COUNTS))
        for name, values in heads.items():
            print(f"{name:<12}" + "".join(f"{value:8.3f}" for value in values))
    print(f"\ncheckpoint and errors in {args.out}")


if __name__ == "__main__":
    main()
