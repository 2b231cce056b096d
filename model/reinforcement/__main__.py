"""Tune a trained model of scenes by rewards: it draws, a judge looks, and what is right becomes likelier.

    python -m model.evaluation.train_detector --seed 1 --out runs/reward-judge
    python -m model.reinforcement --recipe RECIPE --judge runs/reward-judge

The recipe is that of a training that starts from a checkpoint (start_from), with layout_weight = 0; its batch is the
number of images of the data in each step, beside those that the model drew. Let the judge be another than the one that
scores the model afterwards (the shipped one): what a model learns to please says less about it.

OUT/rewards.json holds the mean reward and the share of correct images of every iteration, OUT/rewards.svg draws them,
and OUT/checkpoint holds the averaged weights. The same command resumes after a kill.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.data.interrupts import interruptible
from model.data.sources import DataError
from model.evaluation.detector import DetectorError, load_detector
from model.inference.requests import QUALITIES, Sampling, read_sampling
from model.reinforcement.rollouts import Drawing
from model.reinforcement.tune import Curve, Tuning, check, tune
from model.tokenizer_config import read_json
from model.training.command.flags import amount, whole_number
from model.training.command.machine import within_memory
from model.training.outputs import write_checkpoint
from model.training.recipe import Recipe
from model.training.run import Run, prepare

WINDOW = 20  # iterations whose mean the curve shows


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.reinforcement", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="TOML file, as of python -m model.training")
    parser.add_argument("--judge", type=Path, required=True, help="folder that train_detector wrote")
    parser.add_argument("--sampling", type=Path, default=Path("model/recipes/atlas-128-sampling.json"),
                        help="presets and defaults of sampling (%(default)s)")  # fmt: skip
    parser.add_argument("--quality", choices=QUALITIES, default="low", help="the preset that draws (%(default)s)")
    parser.add_argument("--prompts", type=whole_number(1), default=Drawing.prompts,
                        help="scenes per iteration (%(default)s)")  # fmt: skip
    parser.add_argument("--group", type=whole_number(2), default=Drawing.group, help="images of each (%(default)s)")
    parser.add_argument("--kept", type=whole_number(1), default=Drawing.kept,
                        help="how many of them to learn from, the most telling ones (%(default)s)")  # fmt: skip
    parser.add_argument("--updates", type=whole_number(1), default=Tuning.updates,
                        help="optimiser steps per iteration (%(default)s)")  # fmt: skip
    parser.add_argument("--strength", type=amount, default=Tuning.strength,
                        help="how far an advantage of 1 moves a target; 1: onto the image (%(default)s)")  # fmt: skip
    return parser


def read_presets(file: Path, run: Run) -> dict[str, Sampling]:
    """The presets of a file of sampling settings.

    Raises:
        ConfigError: it is missing, or does not fit the model.
    """
    if not file.is_file():
        raise ConfigError(f"--sampling {file}: there is no such file")
    return read_sampling(read_json(file), run.config)


def plot(curve: Curve, file: Path) -> None:
    """Draw reward and share of correct images, each as a running mean of WINDOW iterations."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3), layout="constrained")
    steps = [entry[0] for entry in curve.entries]
    for column, name in ((1, "mean reward"), (2, "share of correct images")):
        values = [entry[column] for entry in curve.entries]
        means = [sum(part) / len(part) for part in (values[max(0, i - WINDOW + 1) : i + 1] for i in range(len(values)))]
        axis.plot(steps, means, label=name)
    axis.set(xlabel="step", ylabel=f"mean of {WINDOW} iterations")
    axis.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


@interruptible("the same command resumes from the last saved state")
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        judge, recipe = load_detector(args.judge), Recipe.load(args.recipe)
        if not recipe.start_from:
            raise ConfigError(f"{args.recipe}: start_from is empty; only a trained model draws anything to judge")
        run, tokenizer = prepare(recipe)
        check(run)
        sampling = read_presets(args.sampling, run)[args.quality]
        how = Tuning(Drawing(sampling, args.prompts, args.group, args.kept), args.updates, args.strength)
        if run.resume():
            print(f"resuming {recipe.out} at step {run.clock.step}")
        with within_memory("lower --prompts or the recipe's batch; the same command resumes"):
            for curve in tune(run, judge, how):
                plot(curve, Path(recipe.out) / "rewards.svg")
        judged = {"images": args.prompts * args.group * (run.clock.step // how.updates), **asdict(how)}
        folder = write_checkpoint(run, tokenizer, {"reinforcement": judged})
    except (ConfigError, DataError, DetectorError, CheckpointError) as error:
        sys.exit(str(error))
    reward, correct = curve.recent()
    print(json.dumps({"steps": run.clock.step, "reward": round(reward, 4), "correct": round(correct, 4)}))
    print(f"checkpoint in {folder}, curve in {recipe.out}")


if __name__ == "__main__":
    main()
