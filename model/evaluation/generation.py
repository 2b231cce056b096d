"""Generation of one image per prompt with a serving engine, for evaluations and benchmarks."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from model.config import ConfigError
from model.inference.requests import Request, Sampling
from model.inference.serving import ServingEngine


def default_sampling(engine: ServingEngine, quality: str | None = None) -> Sampling:
    """The sampling parameters that the service would use by default.

    quality: a preset of the checkpoint ("low", "medium", "high"); None means the checkpoint's default.
    """
    return engine.presets[quality or engine.info()["defaults"]["quality"]]


def check_size(engine: ServingEngine, pixels: int, what: str) -> None:
    """Raise ConfigError if the engine's images are not of the side that a suite compares them with, before any is made.

    Args:
        what: whose side it is, such as "the suite breadth".
    """
    if engine.image_size != (pixels, pixels):
        checkpoint = engine.checkpoint
        raise ConfigError(
            f"{checkpoint.about.get('name', checkpoint.folder)} generates images of {engine.image_size[0]} px, {what} "
            f"compares them with images of {pixels} px: give another --checkpoint, --suite or --data"
        )


def generate_images(engine: ServingEngine, prompts: list[str], sampling: Sampling, first_seed: int = 0) -> np.ndarray:
    """One image per prompt; the seed is first_seed + position in the list. Returns (P, H, W, 3) uint8.

    Rows of the engine are refilled as soon as they finish, so all of them are busy until the prompts run out.
    """
    width, height = engine.image_size
    out = np.zeros((len(prompts), height, width, 3), np.uint8)
    requests = [Request(p, first_seed + i, sampling) for i, p in enumerate(prompts)]
    prompt_of_row: dict[int, int] = {}
    bar, done = tqdm(total=len(prompts), desc="generate", unit="image"), 0
    while done < len(prompts):
        start = done + len(prompt_of_row)
        group = requests[start : start + engine.max_rows - len(prompt_of_row)]
        prompt_of_row.update(zip(engine.admit(group), range(start, start + len(group)), strict=True))
        for row in engine.step():
            out[prompt_of_row.pop(row)] = np.frombuffer(engine.image(row), np.uint8).reshape(height, width, 3)
            engine.release(row)
            done += 1
            bar.update()
    bar.close()
    return out
