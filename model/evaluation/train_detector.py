"""Train the detector that scores composed scenes: about ten minutes on two CPU cores.

    python -m model.evaluation.train_detector                     ten minutes, into runs/detector; run again to resume
    python -m model.evaluation.train_detector --minutes 60        longer
    python -m model.evaluation --detector runs/detector           its error rates, with every score

It trains on renders of random facts at any position, held-out combinations included, because it must recognise them.
Images are augmented with blur, noise and changes of brightness and contrast, but never with JPEG compression:
evaluate_scenes.py measures the detector with that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from model.config import ConfigError
from model.data.interrupts import interruptible
from model.data.scenes.compose import SIZE, Scene, render, scatter
from model.data.scenes.facts import Grammar
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import COLOURS, STYLES, THINGS
from model.data.sources import DataError
from model.evaluation.detector import STRIDE, Detector, save_detector
from model.inference.precision import autocast
from model.networks.tokenizer import to_pixels
from model.training.command.flags import add_budget_arguments, whole_number
from model.training.command.machine import within_memory
from model.training.trainer import (
    Clock,
    Ema,
    Learner,
    learning_rate,
    own_state,
    step_generator,
    tell_if_used_up,
)

PEAK_LR = 2e-3
UNSEEN_SHARE = 0.15  # share of the training images that contain a held-out combination
SNAP = 2  # pixels: generated images put things anywhere


def sample_scenes(grammar: Grammar, sprites: Sprites, batch: int, seed: int, step: int) -> tuple[list[Scene], Tensor]:
    """The scenes of one training step and their renders, (B, 3, SIZE, SIZE) in [-1, 1]."""
    rng = np.random.default_rng((seed, 2, step))
    scenes = [
        scatter(grammar.sample(rng, want_unseen=bool(rng.random() < UNSEEN_SHARE)), rng, SNAP) for _ in range(batch)
    ]
    return scenes, to_pixels(torch.from_numpy(np.stack([render(scene, sprites) for scene in scenes])))


def augment(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Blur (up to 1.5 pixels), noise (up to 0.15), brightness and contrast (up to 10 %), differently for each image."""
    b = len(pixels)
    amount = torch.rand(b, 4, 1, 1, 1, generator=rng)
    width = torch.arange(-3, 4).float()
    kernel = torch.exp(-0.5 * (width / (0.05 + 1.5 * amount[:, 0, 0])) ** 2)  # (B, 1, 7)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    blurred = pixels
    for axis in (2, 3):  # seven shifted sums are ten times faster on a CPU than a convolution of one group per image
        side = pixels.shape[axis]
        padded = F.pad(blurred, (0, 0, 3, 3) if axis == 2 else (3, 3, 0, 0), mode="replicate")
        shifted = [kernel[:, :, i, None, None] * padded.narrow(axis, i, side) for i in range(7)]
        blurred = torch.stack(shifted).sum(0)
    noise = 0.15 * amount[:, 1] * torch.randn(pixels.shape, generator=rng)
    return blurred * (0.9 + 0.2 * amount[:, 2]) + 0.2 * (amount[:, 3] - 0.5) + noise


class Targets(NamedTuple):
    """Training targets of a batch: the heat map and, for each of M cells near a centre, what is there."""

    centre: Tensor  # (B, G, G) in [0, 1]
    cells: Tensor  # (M, 3) int64: index (b, y, x)
    thing: Tensor  # (M,) int64
    colour: Tensor  # (M,) int64; -1: not recoloured
    style: Tensor  # (M,) int64


def targets(scenes: list[Scene], things: tuple[str, ...], styles: tuple[str, ...]) -> Targets:
    """Training targets of a batch of scenes."""
    grid, colours = SIZE // STRIDE, list(COLOURS)
    centre = torch.zeros(len(scenes), grid, grid)
    cells: list[tuple[int, int, int]] = []
    which: list[int] = []
    tint: list[int] = []
    style: list[int] = []
    axis = torch.arange(grid) + 0.5
    for b, scene in enumerate(scenes):
        for thing in scene.objects:
            x, y = thing.centre[0] / STRIDE, thing.centre[1] / STRIDE
            blob = torch.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / 1.5)
            centre[b] = torch.maximum(centre[b], blob)
            cells += [(b, yy, xx) for yy in _near(y, grid) for xx in _near(x, grid)]
            which += [things.index(thing.thing)] * (len(cells) - len(which))
            tint += [colours.index(thing.colour) if thing.colour else -1] * (len(cells) - len(tint))
        style += [styles.index(scene.facts.style)] * (len(cells) - len(style))
    return Targets(centre, torch.tensor(cells), torch.tensor(which), torch.tensor(tint), torch.tensor(style))


def _near(position: float, grid: int) -> list[int]:
    """Indices of the cells whose centre is within one cell of `position`: any of them may become the peak."""
    return [i for i in range(max(0, int(position) - 1), min(grid, int(position) + 2)) if abs(i + 0.5 - position) <= 1]


def detection_loss(detector: Detector, pixels: Tensor, scenes: list[Scene]) -> Tensor:
    """CenterNet's focal loss of the heat map, plus cross-entropy of drawing and colour at the true centres."""
    centre, cells, which, tint, drawn_as = targets(scenes, detector.things, detector.styles)
    logits, drawing, colour = detector(pixels)
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    near = centre > 0.8
    focal = torch.where(near, -((1 - p) ** 2) * p.log(), -((1 - centre) ** 4) * p**2 * (1 - p).log())
    b, y, x = cells.T
    names = F.cross_entropy(drawing[b, :, :, y, x].flatten(1), which * len(detector.styles) + drawn_as)
    tinted = tint >= 0
    tints = F.cross_entropy(colour[b, :, y, x][tinted], tint[tinted]) if tinted.any() else logits.new_zeros(())
    return focal.sum() / near.sum() + names + 0.5 * tints


def train(
    sprites: Sprites, things: tuple[str, ...], out: Path, minutes: float, steps: int, batch: int, seed: int,
    progress: bool = True, cpu: bool = False,
) -> Detector:  # fmt: skip
    """Train, from `out`/state.pt if it exists, and save to `out`; return the averaged detector.

    Args:
        cpu: `minutes` are of the trainer's processor time, which other work on the machine does not change.

    Raises:
        ConfigError: the state is damaged, or that of another detector.
    """
    grammar = Grammar(sprites, things, STYLES)
    torch.manual_seed(seed)
    detector = Detector(things, STYLES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = Ema(detector, 0.998)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=PEAK_LR, weight_decay=0.02)
    learner = Learner(detector, ema, optimizer, Clock(steps, minutes, cpu=cpu))
    clock = learner.clock
    with own_state(out, f", or remove {out}/state.pt to start over"):
        state = learner.resume(out / "state.pt")
    digest = sprites.about.get("sha256")
    if state is not None and state.get("sprites", digest) != digest:  # not in states of earlier versions
        raise ConfigError(f"{out}/state.pt was trained on other sprites: choose another --out, or those --data")
    tell_if_used_up(clock)
    bar = tqdm(initial=clock.step, desc="detector", unit="step", disable=not progress, mininterval=1.0)
    while clock.progress < 1:
        scenes, pixels = sample_scenes(grammar, sprites, batch, seed, clock.step)
        pixels = augment(pixels, step_generator(seed + 3, clock.step)).contiguous(memory_format=torch.channels_last)
        with autocast(torch.device("cpu")):
            loss = detection_loss(detector, pixels, scenes)
        learner.update(loss, learning_rate(PEAK_LR, clock, warmup=100, anneal_from=0.4), clip=5.0)
        bar.update()
        if clock.step % 200 == 0 or clock.progress >= 1:
            bar.set_postfix(loss=f"{loss.item():.3f}", left=f"{clock.seconds_left:.0f}s")
            learner.save(out / "state.pt", sprites=digest)
    bar.close()
    ema.copy_to(detector)
    save_detector(detector.eval(), out, {"steps": clock.step, "sprites": digest})
    return detector


@interruptible("the same command resumes from the last saved state")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.evaluation.train_detector",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/atlas"), help="folder of sprites that `make data` packed (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/detector"), help="folder for state and weights (%(default)s)"
    )
    parser.add_argument(
        "--things", type=whole_number(1), default=95, help="first things of model/data/scenes/things.py (%(default)s)"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="--minutes are time of day, or the trainer's processor time (%(default)s)")  # fmt: skip
    add_budget_arguments(parser, minutes=10.0, steps=20_000, batch=32)
    args = parser.parse_args(argv)
    things = tuple(THINGS)[: args.things]
    try:
        sprites, cpu = Sprites.load(args.data), args.clock == "cpu"
        with within_memory("lower --batch"):
            train(sprites, things, args.out, args.minutes, args.steps, args.batch, args.seed, cpu=cpu)
    except (DataError, ConfigError) as error:
        sys.exit(str(error))
    print(f"detector in {args.out}; `python -m model.evaluation --detector {args.out}` reports its error rates")


if __name__ == "__main__":
    main()
