"""What is learned: the guided velocity of a frozen copy, at points that sampling visits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fluid_kernels.transfers import send
from model.config import ConfigError
from model.flow import add_flow_noise
from model.inference.orders import training_masks
from model.inference.precision import autocast
from model.networks.autoregressive_model import Fluid
from model.networks.transformer import TextContext
from model.training.loop import diffusion_draws
from model.training.recipe import Recipe
from model.training.run import Run, config_of, start_from
from model.training.trainer import step_generator

LEAST_TEMPERATURE = 0.5  # of the noise that paths start from; requests take 1 or less
UNSEEN_STEP = 10_000_000  # of the feed: a batch beyond every training


def check(recipe: Recipe, scale: float) -> None:
    """Raise ConfigError if the recipe's model cannot learn guidance of a scale, or it wants what is not done here.

    Raises:
        CheckpointError: start_from holds no checkpoint.
    """
    config = config_of(recipe)
    if config.system != "random-continuous" or config.prediction != "flow" or config.mean_flow:
        raise ConfigError(
            f"preset {recipe.preset!r} has system {config.system!r} and prediction {config.prediction!r}: only "
            "random-continuous models with prediction 'flow' learn guidance here; choose such a preset"
        )
    if not recipe.start_from:
        raise ConfigError("start_from is empty: name the checkpoint whose guidance is to be learned")
    if start_from(Fluid(config), Path(recipe.start_from)) < 1:
        raise ConfigError(
            f"{recipe.start_from} has other sizes than preset {recipe.preset!r}: what it would teach is partly random; "
            "choose its own preset"
        )
    if scale == 1:
        raise ConfigError("a scale of 1 is no guidance: there is nothing to learn; give --scale above 1, or below")
    if recipe.scenes and recipe.scenes.layout_weight:
        raise ConfigError("layout_weight must be 0: the velocity alone is learned here")


def losses(run: Run, teacher: Fluid, scale: float) -> tuple[Tensor, Tensor]:
    """Mean squared error of the next step, twice, as `loop.train` wants it; a function of (seed, step)."""
    student, target, _ = velocities(run, run.model, teacher, scale, run.clock.step, run.recipe.text_drop)
    loss = (student - target).square().mean()
    return loss, loss


@torch.no_grad()
def missing(run: Run, teacher: Fluid, scale: float) -> float:
    """Share of what guidance adds that the averaged weights have not learned, on a batch beyond training.

    1: they are as the teacher without guidance; 0: guidance is all in the weights, or adds nothing.
    """
    averaged = Fluid(run.config).to(run.device).eval()
    run.learner.ema.copy_to(averaged)
    student, target, plain = velocities(run, averaged, teacher, scale, UNSEEN_STEP, drop=0.0)
    added = float((plain - target).square().mean())
    return float((student - target).square().mean()) / added if added else 0.0


def velocities(
    run: Run, student: Fluid, teacher: Fluid, scale: float, step: int, drop: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Velocities at the masked tokens of a batch, each with R noises; without a prompt guidance changes none.

    Args:
        drop: share of images whose prompt is dropped.
    Returns:
        (R·M, C) of the student, guided ones of the teacher, and the teacher's with the prompt alone.
    """
    recipe, captions = run.recipe, run.feed.captions
    rng = step_generator(recipe.seed, step)
    rows, tokens, _ = run.feed.tokens(step)
    states, mask = captions.sample(rows, drop, rng)
    masked = training_masks(len(rows), run.config.tokens, rng, recipe.mask_orders)  # (B, N), M of them True
    index, noise = diffusion_draws(run.config, int(masked.sum()), recipe.noise_draws, rng, run.device)
    assert index is not None and noise is not None
    t, noise = index.flatten(), noise.flatten(0, 1)  # (R·M,), (R·M, C)
    warmth = LEAST_TEMPERATURE + (1 - LEAST_TEMPERATURE) * torch.rand(len(t), 1, generator=rng)
    moved = (send(each, run.device) for each in (warmth, tokens, states, mask, masked, *masked.nonzero(as_tuple=True)))
    warmth, tokens, states, mask, masked, *places = moved
    at = tuple(places)
    x = add_flow_noise(tokens[at].repeat(recipe.noise_draws, 1), t, warmth * noise)
    with autocast(run.device):
        text = student.backbone.encode_text(states, mask)
        z = student.backbone(tokens, ~masked, text)[at]  # (M, D)
        found = student.head(x, t, z.repeat(recipe.noise_draws, 1)).float()
        with torch.no_grad():
            plain, without = _both(run, teacher, tokens, masked, at, states, mask, x, t)
    return found, without + scale * (plain - without), plain


def _both(
    run: Run, teacher: Fluid, tokens: Tensor, masked: Tensor, at: tuple[Tensor, ...], states: Tensor, mask: Tensor,
    x: Tensor, t: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The teacher's velocities (R·M, C), with the prompts and without. at: indices of the masked tokens."""
    captions, draws = run.feed.captions, run.recipe.noise_draws
    null = teacher.backbone.encode_text(captions.null_states.to(run.device), captions.null_mask.to(run.device))
    text = TextContext.stack([teacher.backbone.encode_text(states, mask), *[null] * len(tokens)])
    z = teacher.backbone(tokens.repeat(2, 1, 1), ~masked.repeat(2, 1), text)  # (2B, N, D)
    with_prompt, without = (half[at].repeat(draws, 1) for half in z.chunk(2))
    both = teacher.head(x.repeat(2, 1), t.repeat(2), torch.cat([with_prompt, without])).float()
    plain, unconditional = both.chunk(2)
    return plain, unconditional
