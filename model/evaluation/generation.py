"""Generation of one image per prompt with a serving engine, for evaluations and benchmarks."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from model.inference.requests import Request, Sampling
from model.inference.serving import ServingEngine


def default_sampling(engine: ServingEngine, quality: str | None = None) -> Sampling:
    """The sampling parameters that the service would use by default.

    quality: a preset of the checkpoint ("low", "medium", "high"); None means the checkpoint's default.
    """
    info = engine.info()
    defaults = dict(info["defaults"])
    default_quality = defaults.pop("quality")
    return Sampling(**info["presets"][quality or default_quality], **defaults)


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
