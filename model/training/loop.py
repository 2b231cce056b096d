"""The training loop: loss, step, and everything that happens between steps."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from model.inference.orders import training_masks
from model.inference.precision import autocast
from model.training.run import Run
from model.training.trainer import generator, learning_rate


def step_loss(run: Run) -> tuple[Tensor, Tensor]:
    """The diffusion loss of the step that comes next, and what to descend: with scenes' extra lesson added.

    All randomness comes from (seed, step).
    """
    recipe, clock = run.recipe, run.clock
    rng = generator(recipe.seed, clock.step)
    began = time.perf_counter()
    rows, tokens, cells = run.feed.tokens(clock.step)
    run.waited += time.perf_counter() - began
    states, mask = run.feed.bank.draw(rows, recipe.text_drop, rng)
    masked = training_masks(len(rows), run.config.tokens, rng)
    shape = (recipe.noise_draws, int(masked.sum()))
    index = torch.randint(len(run.schedule), shape, generator=rng)
    noise = torch.randn(*shape, run.config.channels, generator=rng)
    tokens, states, mask, masked, index, noise = (
        t.to(run.device) for t in (tokens, states, mask, masked, index, noise)
    )
    with autocast(run.device):
        text = run.model.backbone.encode_text(states, mask)
        z = run.model.backbone(tokens, ~masked, text)  # (B, N, D)
        loss = run.model.token_loss(run.schedule, z, tokens, masked, index, noise)
        if run.layout is None or recipe.scenes is None or cells is None:
            return loss, loss
        lesson = run.layout.loss(z[masked], cells.to(run.device)[masked])
        return loss, loss + recipe.scenes.layout * lesson


def train_step(run: Run) -> float:
    """One optimiser step; returns the loss."""
    recipe, clock = run.recipe, run.clock
    loss, objective = step_loss(run)
    rate = learning_rate(recipe.learning_rate, clock, recipe.warmup, recipe.anneal_from)
    run.learner.update(objective, rate, recipe.clip)
    return loss.item()


def train(run: Run, progress: bool = True, until: float = float("inf")) -> Iterator[int]:
    """Steps until the budget is used up or time.monotonic() passes `until`; yields the step number after each save."""
    recipe, clock = run.recipe, run.clock
    if recipe.compile:
        # Bound methods, so that parameter names in the state dict stay as they are.
        run.model.backbone.forward = torch.compile(run.model.backbone.forward)  # type: ignore[method-assign]
        run.model.head.forward = torch.compile(run.model.head.forward, dynamic=True)  # type: ignore[method-assign]
    bar = tqdm(initial=clock.step, desc="train", unit="step", disable=not progress, mininterval=1.0)
    recent: list[float] = []
    over = clock.progress >= 1
    while not over:
        recent.append(train_step(run))
        bar.update()
        over = clock.progress >= 1 or time.monotonic() >= until
        if clock.step % recipe.save_every == 0 or over:
            mean, recent = sum(recent) / len(recent), []
            run.history.append([clock.step, clock.seconds, mean])
            pace = clock.step * recipe.batch / clock.seconds
            left = clock.seconds_left / 60
            bar.set_postfix_str(f"loss {mean:.4f}, {pace:.0f} img/s, {left:.0f} min left")
            run.save()
            yield clock.step
    bar.close()
