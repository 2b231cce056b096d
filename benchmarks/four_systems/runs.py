"""The stages of the comparison. Each leaves a file that says that it is done; what is done is not done again.

A stage that was killed half-way is resumed by its own program: trainers save their whole state.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RECIPE = "model/recipes/compare.toml"
DATA = "data/scenes"
SYSTEMS = ("random-continuous", "random-discrete", "raster-continuous", "raster-discrete")
SCALED = "random-continuous"  # the system of the scaling curve
SIZES = ("random-continuous-small", "random-continuous", "random-continuous-large")
AR_STEPS = 64  # of every system: raster order has no choice, and random order gains from every step
DIFFUSION_STEPS = 25


class StageError(RuntimeError):
    """A stage failed; the message has its command."""


@dataclass(frozen=True)
class Stage:
    """A command, and the file that it leaves when it is done."""

    name: str
    leaves: Path
    arguments: tuple[str, ...]  # after `python -m`

    @property
    def done(self) -> bool:
        return self.leaves.exists()


def stages(runs: Path, minutes: float, tokenizer_minutes: float, prompts: int) -> Iterator[Stage]:
    """All stages in order. The arguments of the two scaled sizes depend on a run before them: ask for one at a time."""
    continuous = str(runs / "tokenizer" / "tokenizer.safetensors")
    for kind in ("continuous", "discrete"):
        folder = runs / ("tokenizer" if kind == "continuous" else "tokenizer-vq")
        yield Stage(
            f"{kind} tokenizer", folder / "tokenizer.safetensors",
            ("model.training.train_tokenizer", "--preset", f"compare-random-{kind}", "--data", DATA,
             "--out", str(folder), "--minutes", f"{tokenizer_minutes:g}"),
        )  # fmt: skip
        for name in (f"random-{kind}", f"raster-{kind}"):
            yield _train(runs, name, str(folder / "tokenizer.safetensors"), minutes)
            yield _loss(runs, name)
    detector = runs.parent / "detector"
    yield Stage("detector", detector / "detector.json",
                ("model.evaluation.train_detector", "--data", DATA, "--things", "48",
                 "--out", str(detector)))  # fmt: skip
    for name in SYSTEMS:
        yield Stage(
            f"{name}: suite", runs / name / "scenes" / "report.json",
            ("model.evaluation", "--suite", "scenes", "--checkpoint", str(runs / name / "checkpoint"), "--data", DATA,
             "--detector", str(detector), "--prompts", str(prompts), "--images", "1",
             "--out", str(runs / name / "scenes"), *sampling(name)),
        )  # fmt: skip
    for name in SIZES:
        if name != SCALED:
            yield _train(runs, name, continuous, 0, steps_of(runs / SCALED))
            yield _loss(runs, name)


def sampling(name: str) -> tuple[str, ...]:
    """Flags of the sampling settings of a system."""
    order, _, tokens = name.partition("-")
    diffusion = str(1 if tokens == "discrete" else DIFFUSION_STEPS)
    return (
        "--num-inference-steps", str(AR_STEPS), "--order", order,
        "--diffusion-steps", diffusion, "--diffusion-steps-final", diffusion,
    )  # fmt: skip


def steps_of(run: Path) -> int:
    """Training steps of a finished run, 0 before that."""
    file = run / "checkpoint" / "config.json"
    return int(json.loads(file.read_text())["about"]["training"]["steps"]) if file.exists() else 0


def run_stages(runs: Path, minutes: float, tokenizer_minutes: float, prompts: int) -> None:
    """Do every stage that is not done.

    Raises:
        StageError: a stage failed, or did not leave its file.
    """
    for stage in stages(runs, minutes, tokenizer_minutes, prompts):
        if stage.done:
            print(f"{stage.name}: done before", flush=True)
            continue
        print(f"{stage.name}: python -m {' '.join(stage.arguments)}", flush=True)
        ended = subprocess.run([sys.executable, "-m", *stage.arguments], check=False)
        if ended.returncode or not stage.done:
            raise StageError(f"{stage.name}: exit status {ended.returncode}, {stage.leaves} is missing or incomplete")


def _train(runs: Path, name: str, tokenizer: str, minutes: float, steps: int = 0) -> Stage:
    budget = ("--minutes", f"{minutes:g}", *(("--steps", str(steps)) if steps else ()))
    return Stage(
        f"{name}: train", runs / name / "checkpoint" / "config.json",
        ("model.training", "--recipe", RECIPE, "--preset", f"compare-{name}", "--data", DATA,
         "--tokenizer", tokenizer, "--out", str(runs / name), *budget),
    )  # fmt: skip


def _loss(runs: Path, name: str) -> Stage:
    return Stage(
        f"{name}: loss", runs / name / "loss.json",
        ("model.evaluation", "--loss", str(runs / name / "checkpoint"), "--data", DATA, "--out", str(runs / name)),
    )  # fmt: skip
