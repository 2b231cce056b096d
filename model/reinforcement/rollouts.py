"""The images that a model learns from: drawn by itself as they are served, and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.data.atlas.atlas_bank import AtlasBank
from model.evaluation.detector import Detector
from model.inference.engine import Engine
from model.inference.precision import choose_dtype, pack, product_dtype
from model.inference.requests import Request, Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.condition import Condition, Conditioner
from model.networks.tokenizer import decode_tokens, to_uint8
from model.reinforcement.rewards import advantages, rewards
from model.training.feeds import SceneFeed
from model.training.trainer import step_generator


@dataclass(frozen=True)
class Rollouts:
    """P images of the model to learn from, with their advantages.

    Attributes:
        rows: (P,) of the feed, whose captions were the prompts.
        reward, correct: means over all images that were drawn.
    """

    rows: Tensor
    tokens: Tensor  # (P, N, C)
    advantage: Tensor  # (P,)
    reward: float
    correct: float


@dataclass(frozen=True)
class Drawing:
    """How images are drawn, and how many.

    Attributes:
        prompts, group: random scenes, and images of each.
        kept: most images to learn from, those with the largest advantages: most prompts are easy and teach nothing.
    """

    sampling: Sampling
    prompts: int = 16
    group: int = 4
    kept: int = 32


def rollouts(model: Fluid, feed: SceneFeed, judge: Detector, how: Drawing, seed: int, index: int) -> Rollouts:
    """Draw and judge images; a function of the model, `how`, `seed` and `index` alone."""
    rng = step_generator(seed + 4, index)
    scenes = feed.scenes.scenes if isinstance(feed.scenes, AtlasBank) else len(feed.scenes)  # the judge knows no others
    rows = torch.randint(scenes, (how.prompts,), generator=rng).repeat_interleave(how.group)  # (all,)
    numbers = rows.tolist()
    tokens, images = draw(model, feed, numbers, [index * len(rows) + i for i in range(len(rows))], how.sampling)
    facts, captions = ([column[row] for row in numbers] for column in (feed.scenes.facts, feed.scenes.captions))
    reward, correct = rewards(judge, facts, captions, images)
    advantage = advantages(reward, how.group)
    most = advantage.abs().argsort(descending=True, stable=True)[: how.kept]  # (P,)
    means = float(reward.mean()), float(correct.float().mean())
    return Rollouts(rows[most], tokens[most], advantage[most], *means)


class CachedPrompts(Conditioner):
    """Conditioner of captions whose text states a feed has: no text encoder runs."""

    def __init__(self, model: Fluid, feed: SceneFeed, rows: Sequence[int]):
        """rows: of the feed, whose captions may be asked for."""
        self.backbone, self.captions = model.backbone, feed.captions
        self.device = next(model.parameters()).device
        self.row_of = {feed.scenes.captions[row]: row for row in rows}

    @torch.inference_mode()
    def __call__(self, prompt: str) -> Condition:
        cache = self.captions
        row = self.row_of[prompt] if prompt else None
        states, mask = (
            (cache.null_states, cache.null_mask) if row is None else (cache.states[row, :1], cache.mask[row, :1])
        )  # (1, L, E), (1, L)
        return self.backbone.encode_text(states.float().to(self.device), mask.to(self.device))


@torch.inference_mode()
def _draw(model: Fluid, feed: SceneFeed, rows: Sequence[int], seeds: Sequence[int], sampling: Sampling) -> list[Tensor]:
    """One image per row, by the engine that serves: (P, N, C) tokens and (P, H, W, 3) uint8 images."""
    device = next(model.parameters()).device
    dtype = choose_dtype("auto", device)
    served = Fluid(model.config).to(device).eval()
    served.load_state_dict(model.state_dict())
    pack(served, dtype)
    engine = Engine(served, CachedPrompts(served, feed, rows), len(rows), product_dtype(dtype))
    requests = [Request(feed.scenes.captions[row], seed, sampling) for row, seed in zip(rows, seeds, strict=True)]
    slots, left = engine.admit(requests), len(requests)
    while left:
        left -= len(engine.step())
    tokens = torch.stack([engine.peek(slot) for slot in slots])
    pixels = decode_tokens(feed.tokenizer, tokens.to(next(feed.tokenizer.parameters()).device))
    return [tokens, to_uint8(pixels[:, :3]).cpu()]


def draw(
    model: Fluid, feed: SceneFeed, rows: Sequence[int], seeds: Sequence[int], sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """One image per row of the feed, by the engine that serves.

    Returns:
        (P, N, C) tokens and (P, H, W, 3) uint8 images.
    """
    tokens, images = _draw(model, feed, rows, seeds, sampling)
    return tokens.clone(), images.clone()  # tensors made in inference mode cannot take part in a backward pass
