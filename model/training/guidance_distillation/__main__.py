"""Put guidance into the weights of a trained model, so that an image takes one pass a step instead of two.

    python -m model.training.guidance_distillation --recipe RECIPE --scale 2

The recipe is that of a training that starts from a checkpoint (start_from), with layout_weight = 0; its data, batch,
optimiser and budget are used. OUT/checkpoint holds the averaged weights: with a guidance_scale of 1, which needs one
pass, they draw as the first model with one of --scale, and with s as it with s times --scale. Its presets
say so; write better ones with `python -m model.evaluation.cards --sampling`. The same command resumes after a kill.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.data.interrupts import interruptible
from model.data.sources import DataError
from model.sampling_presets import default_sampling
from model.training.command.flags import amount, check_out
from model.training.command.machine import within_memory
from model.training.guidance_distillation.distill import check, losses, missing
from model.training.loop import train
from model.training.outputs import write_checkpoint
from model.training.recipe import Recipe
from model.training.run import prepare


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.training.guidance_distillation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--recipe", type=Path, required=True, help="TOML file, as of python -m model.training")
    parser.add_argument("--scale", type=amount, default=2.0, help="guidance scale to learn (%(default)s)")
    return parser


def check_resumed(out: Path, begun: dict[str, Any], weights: str, scale: float) -> None:
    """Raise ConfigError if the run in `out` is another one than would be started now: it cannot go on from its state.

    Args:
        begun: what the run started from, as its state says.
        weights, scale: SHA-256 of the weights whose guidance is learned, and the scale.
    """
    if "scale" not in begun:
        raise ConfigError(f"{out} holds a training without guidance: name another out in the recipe")
    if begun["scale"] != scale:
        learned = f"{begun['scale']:g}"
        raise ConfigError(f"{out} learns a scale of {learned}: resume it with --scale {learned}, or choose another out")
    if begun["sha256"] != weights:
        raise ConfigError(
            f"{out} learns from the weights {begun['sha256']}, start_from holds {weights} now: restore those, or name "
            "another out in the recipe"
        )


@interruptible("the same command resumes from the last saved state")
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        recipe = Recipe.load(args.recipe)
        check(recipe, args.scale)  # before captions are encoded
        check_out(Path(recipe.out) / "checkpoint", recipe.start_from)
        run, tokenizer = prepare(recipe)
        teacher = copy.deepcopy(run.model).requires_grad_(False).eval()  # before a state is loaded
        out = Path(run.recipe.out)
        run.started_from["scale"] = args.scale
        weights = run.started_from["sha256"]
        if run.resume():
            check_resumed(out, run.started_from, weights, args.scale)
            print(f"resuming {out} at step {run.clock.step}")
            if run.clock.progress >= 1:
                print("its budget is used up: give the recipe more minutes or steps")
        if run.recipe.compile:
            teacher.backbone.forward = torch.compile(teacher.backbone.forward)  # type: ignore[method-assign]
        with within_memory("lower the recipe's batch or noise_draws; the same command resumes"):
            for _ in train(run, losses=partial(losses, teacher=teacher, scale=args.scale)):
                (out / "history.json").write_text(json.dumps(run.history))
            left = missing(run, teacher, args.scale)
        learned = {"scale": args.scale, "missing": round(left, 4)}
        sampling = default_sampling(run.config)
        sampling["defaults"]["guidance_scale"] = 1.0  # what was learned
        folder = write_checkpoint(run, tokenizer, {"guidance": learned}, sampling)
    except (ConfigError, DataError, CheckpointError) as error:
        sys.exit(str(error))
    print(
        f"{run.clock.step} steps; of what guidance adds, {left:.1%} is missing in the weights; checkpoint in {folder}"
    )


if __name__ == "__main__":
    main()
