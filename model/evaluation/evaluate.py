"""Score a checkpoint: `python -m model.evaluation`.

    python -m model.evaluation                                          composed scenes: GenEval's questions
    python -m model.evaluation --quality low,high                       two presets, compared
    python -m model.evaluation --suite breadth                          a thousand named things, one at a time
    python -m model.evaluation --suite emoji                            emoji-64 of `make train`: R-precision
    python -m model.evaluation --guidance-scale 5 --images 1            other sampling settings, fewer images
    python -m model.evaluation --loss PATH --data data/scenes           validation loss, of any checkpoint on any data

Suites are explained in evaluate_emoji.py, evaluate_scenes.py and breadth/evaluate_breadth.py; scenes uses a shipped
detector, or one of `python -m model.evaluation.train_detector`. All need the data of `make data`, write contact sheets
and report.json to --out, and print one JSON object as their last line. --loss is explained in validation_loss.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.data.dataset import Dataset
from model.data.interrupts import interruptible
from model.data.sources import DataError
from model.evaluation.breadth.evaluate_breadth import run_breadth
from model.evaluation.detector import DetectorError
from model.evaluation.evaluate_emoji import evaluate_emoji, save_failures, save_sheet
from model.evaluation.evaluate_scenes import run_scenes
from model.evaluation.generation import check_size, default_sampling
from model.evaluation.validation_loss import run_loss
from model.inference.engine import OutOfMemory
from model.inference.load import SHIPPED, find_checkpoint, load_engine
from model.inference.requests import EngineError, Request, Sampling, check_request
from model.inference.serving import ServingEngine
from model.networks.condition import PromptError
from model.training.command.flags import whole_number


class Defaults(NamedTuple):
    """Default checkpoint, data folder and number of images of a suite."""

    checkpoint: str
    data: Path
    images: int


SUITES = {
    "scenes": Defaults("atlas-128", Path("data/atlas"), 4),
    "breadth": Defaults("atlas-128", Path("data/atlas"), 1000),
    "emoji": Defaults("runs/emoji-64/checkpoint", Path("data/emoji-64"), 400),
}
LOSS_IMAGES = 512
SAMPLING: dict[str, tuple[type, str]] = {
    "num_inference_steps": (int, "autoregressive steps per image"),
    "diffusion_steps": (int, "diffusion steps per autoregressive step"),
    "diffusion_steps_final": (
        int,
        "diffusion steps in the last autoregressive step; interpolated in between",
    ),
    "order": (str, "order in which tokens are generated: random, halton or gtr"),
    "guidance_scale": (float, "scale of classifier-free guidance; 1: none"),
    "guidance_schedule": (str, "constant, or linear: from 1 up to the scale"),
    "temperature": (float, "scale of the noise of the diffusion steps"),
}
NOT_OF_LOSS = ("checkpoint", "prompts", "detector", "quality", "rows", "sampling", *SAMPLING)
ONLY_OF = {"things": "--loss", "snap": "--loss", "prompts": "--suite scenes", "detector": "--suite scenes"}
EXAMPLE = "give a file like model/recipes/atlas-128-sampling.json"


def parse_presets(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of quality presets."""
    names = tuple(name.strip() for name in text.split(","))
    if unknown := set(names) - {"low", "medium", "high"}:
        raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]!r} is not low, medium or high")
    return names


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=tuple(SUITES), default="scenes", help="benchmark to run (%(default)s)")
    parser.add_argument("--loss", metavar="CHECKPOINT",
                        help="measure the validation loss of this checkpoint, instead of a benchmark")  # fmt: skip
    parser.add_argument(
        "--checkpoint", help="folder, or the shipped checkpoint (atlas-128); for emoji runs/emoji-64/checkpoint"
    )
    parser.add_argument("--data", type=Path, help="folder of `make data` (data/emoji-64, data/scenes or data/atlas)")
    parser.add_argument(
        "--images",
        type=whole_number(1),
        help="emoji: trained pairs (400); scenes: images per prompt (4); breadth: things (1000); "
        "loss: images per split (512)",
    )
    parser.add_argument(
        "--prompts", type=whole_number(2), default=100, help="scenes: prompts in each of six categories (%(default)s)"
    )
    parser.add_argument("--detector", type=Path, default=SHIPPED / "scenes-detector",
                        help="scenes: folder of a trained detector (the shipped one)")  # fmt: skip
    parser.add_argument(
        "--quality", type=parse_presets, metavar="PRESET[,PRESET]", default=("",),
        help="low, medium or high; default: the checkpoint's. scenes compares several",
    )  # fmt: skip
    parser.add_argument(
        "--things",
        type=whole_number(1),
        help="loss on scenes: first things of model/data/scenes/things.py (default: those that the checkpoint knows)",
    )
    parser.add_argument(
        "--snap", type=whole_number(1), default=16, help="loss on scenes: raster of corners, pixels (%(default)s)"
    )
    parser.add_argument("--rows", type=whole_number(1), default=64, help="images generated together (%(default)s)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed of the first image (%(default)s)")
    parser.add_argument("--sampling", type=Path, help="JSON with presets and defaults that replace the checkpoint's")
    parser.add_argument(
        "--out", type=Path, default=Path("out/evaluate"), help="folder for sheets and report.json (%(default)s)"
    )
    sampling = parser.add_argument_group("sampling", "override the preset")
    for name, (kind, meaning) in SAMPLING.items():
        flag = f"--{name.replace('_', '-')}"
        sampling.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=meaning)
    return parser


def run_emoji(engine: ServingEngine, data: Path, settings: Sampling, images: int, seed: int, out: Path) -> None:
    """Score the checkpoint, write sheets and report.json to `out`, and print the report.

    Raises:
        ConfigError: the checkpoint's images are of another size. DataError: `data` holds no images.
    """
    dataset = Dataset.load(data)
    check_size(engine, dataset.images.shape[1], f"{data}")
    report, kept = evaluate_emoji(engine, dataset, images, settings, seed)
    out.mkdir(parents=True, exist_ok=True)
    save_sheet(dataset, kept, out / "sheet.png")
    save_failures(dataset, kept, out / "failures.png")
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, value in report.items():
        print(f"{name:32s} {value}")
    print(f"{'look at':32s} {out / 'sheet.png'}")
    print(json.dumps(report))


def use_sampling(engine: ServingEngine, file: Path) -> None:
    """Replace the checkpoint's presets and defaults by those of a file.

    Raises:
        ConfigError: the file cannot be read, or its settings do not fit the model.
    """
    try:
        engine.use_sampling(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(
            f"--sampling: {file} cannot be read ({error.strerror}); give a file like {EXAMPLE}"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"--sampling: {file}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"--sampling: {file} is not JSON ({error}); {EXAMPLE}") from error


@interruptible("the same command starts over")
def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.suite != "scenes" and len(args.quality) > 1:
        parser.error("--quality: only --suite scenes compares several presets")
    for name, use in () if args.loss else ONLY_OF.items():
        if vars(args)[name] != parser.get_default(name) and use != f"--suite {args.suite}":
            parser.error(f"--{name} is only for {use}: leave it out")
    for name in NOT_OF_LOSS if args.loss else ():
        if vars(args)[name] != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is not for --loss, which generates no images: leave it out")
    defaults = SUITES[args.suite]
    data, images = args.data or defaults.data, args.images or (LOSS_IMAGES if args.loss else defaults.images)
    overrides = {name: value for name in SAMPLING if (value := vars(args)[name]) is not None}
    try:
        if args.loss:
            run_loss(args.loss, data, images, args.things, args.snap, args.seed, args.out)
            return
        engine = load_engine(str(find_checkpoint(args.checkpoint or defaults.checkpoint)), args.rows, "auto", 0)
        if args.sampling:
            use_sampling(engine, args.sampling)
        choices = {name: replace(default_sampling(engine, name or None), **overrides) for name in args.quality}
        for each in choices.values():
            check_request(Request("", args.seed, each), engine.checkpoint.config)
        if args.suite == "scenes":
            run_scenes(engine, data, args.detector, args.prompts, choices, images, args.seed, args.out)
            return
        [settings] = choices.values()
        if args.suite == "breadth":
            run_breadth(engine, data, settings, images, args.seed, args.out)
        else:
            run_emoji(engine, data, settings, images, args.seed, args.out)
    except (CheckpointError, ConfigError, DataError, DetectorError, EngineError, OutOfMemory, PromptError) as error:
        sys.exit(str(error))
