"""Drawing a list of prompts with a serving engine, for evaluations and benchmarks."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from model.inference.requests import Request, Sampling
from model.inference.serving import ServingEngine


def default_sampling(engine: ServingEngine, quality: str | None = None) -> Sampling:
    """The checkpoint's own settings, which are what the service uses."""
    info = engine.info()
    defaults = dict(info["defaults"])
    default_quality = defaults.pop("quality")
    return Sampling(**info["presets"][quality or default_quality], **defaults)


def draw(engine: ServingEngine, prompts: list[str], sampling: Sampling, first_seed: int = 0) -> np.ndarray:
    """One picture per prompt, seed first_seed + place in the list; (P, H, W, 3) uint8."""
    width, height = engine.image_size
    out = np.zeros((len(prompts), height, width, 3), np.uint8)
    waiting = [Request(p, first_seed + i, sampling) for i, p in enumerate(prompts)]
    place: dict[int, int] = {}
    bar, done = tqdm(total=len(prompts), desc="draw", unit="image"), 0
    while done < len(prompts):
        nxt = done + len(place)
        group = waiting[nxt : nxt + engine.max_rows - len(place)]
        place.update(zip(engine.admit(group), range(nxt, nxt + len(group)), strict=True))
        for row in engine.step():
            out[place.pop(row)] = np.frombuffer(engine.image(row), np.uint8).reshape(height, width, 3)
            engine.release(row)
            done += 1
            bar.update()
    bar.close()
    return out
