"""One image of each system for the same prompts and seeds, system by system from the top."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.four_systems.runs import AR_STEPS, DIFFUSION_STEPS, SYSTEMS
from model.data.contact_sheet import contact_sheet
from model.evaluation.generation import default_sampling, generate_images
from model.inference.load import load_engine

PROMPTS = (
    "a red apple, 3d style",
    "a cat, noto style",
    "a yellow star on a blue background, flat style",
    "two dogs, twemoji style",
    "three apples on a green background, blob style",
    "a cat left of a dog, emojione style",
    "a big car, 3d style",
    "a hamburger above a rocket, noto style",
)


def save_grid(runs: Path, file: Path, seed: int = 0) -> Path:
    """Write the grid of the systems that are trained; a row of images per system, prompts underneath.

    Raises:
        CheckpointError: none is trained, or one cannot be loaded.
    """
    images: list[np.ndarray] = []
    labels: list[str] = []
    for name in SYSTEMS:
        if not (runs / name / "checkpoint" / "config.json").exists() and name != SYSTEMS[0]:
            continue
        engine = load_engine(str(runs / name / "checkpoint"), len(PROMPTS))
        order, _, tokens = name.partition("-")
        diffusion = 1 if tokens == "discrete" else DIFFUSION_STEPS
        settings = replace(
            default_sampling(engine), num_inference_steps=AR_STEPS, order=order,
            diffusion_steps=diffusion, diffusion_steps_final=diffusion,
        )  # fmt: skip
        images += list(generate_images(engine, list(PROMPTS), settings, seed))
        labels += [f"{name}: {PROMPTS[0]}", *PROMPTS[1:]]
    file.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(images, labels, columns=len(PROMPTS)).save(file)
    return file
