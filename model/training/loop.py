"""The training loop: loss of a step, optimiser step, budget, periodic saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from fluid_kernels.allocation import keep_freed_memory
from fluid_kernels.head_loop import TRAIN_STEPS
from fluid_kernels.transfers import send
from model.config import ModelConfig
from model.flow import sample_times
from model.inference.orders import training_masks
from model.inference.precision import autocast
from model.training.run import Run
from model.training.trainer import learning_rate, step_generator

Losses = Callable[[Run], tuple[Tensor, Tensor]]


def step_loss(run: Run) -> tuple[Tensor, Tensor]:
    """Losses of the next step: the tokens' loss, and the objective, which adds any auxiliary layout loss.

    All randomness is a function of (seed, step): every rank makes all choices of the batch and computes its share. A
    rank's losses are weighted so that their mean over the ranks is the loss of the whole batch.
    """
    recipe, clock = run.recipe, run.clock
    rng = step_generator(recipe.seed, clock.step)
    began = time.perf_counter()
    rows, tokens, cells = run.feed.tokens(clock.step)
    run.data_wait_s += time.perf_counter() - began
    part = run.share.part(len(rows))
    states, mask = run.feed.captions.sample(rows, recipe.text_drop, rng, part)
    if run.config.causal:  # every position is predicted, from those before it
        masked = torch.ones(len(rows), run.config.tokens, dtype=torch.bool)
    else:
        masked = training_masks(len(rows), run.config.tokens, rng, recipe.mask_orders)
    total, before, count = (int(each.sum()) for each in (masked, masked[: part.start], masked[part]))
    masked = masked[part]
    found = masked.nonzero(as_tuple=True)  # on the host: a device would have to be waited for
    index, noise = (
        draws if draws is None else draws[:, before : before + count]
        for draws in diffusion_draws(run.config, total, recipe.noise_draws, rng, run.device)
    )
    tokens, states, mask, masked, *places = (send(t, run.device) for t in (tokens, states, mask, masked, *found))
    cells = None if cells is None else send(cells, run.device)
    with autocast(run.device):
        loss, objective = run.losses(
            run.schedule, tokens, masked, tuple(places), states, mask, index, noise, cells
        )  # fmt: skip
    weight = count * run.share.size / total
    return (loss, objective) if weight == 1 else (weight * loss, weight * objective)


def diffusion_draws(
    config: ModelConfig, tokens: int, draws: int, rng: torch.Generator, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Chain indices (R, M) and noise (R, M, C) of a step's diffusion losses; none for discrete tokens.

    Args:
        tokens: M. draws: R, losses per token.
        rng: of the step.
    """
    if config.categorical:
        return None, None
    shape = (draws, tokens)
    rng = generator_on(device, rng)
    flow = config.prediction == "flow"
    index = sample_times(shape, rng) if flow else torch.randint(TRAIN_STEPS, shape, generator=rng, device=rng.device)
    noise = torch.randn(*shape, config.channels, generator=rng, device=rng.device)
    return send(index, device), send(noise, device)


def generator_on(device: torch.device, rng: torch.Generator) -> torch.Generator:
    """`rng` itself on a CPU; for another device one of its own, seeded from it.

    A CPU takes longer to draw the noise of a step than a GPU to train on it.
    """
    if device.type == "cpu":
        return rng
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=rng)))


def train_step(run: Run, losses: Losses = step_loss) -> Tensor:
    """Do one optimiser step and return the tokens' loss, (), on the device, of this rank.

    losses: gives that and the objective, of the next step.
    """
    recipe, clock = run.recipe, run.clock
    loss, objective = losses(run)
    rate = learning_rate(recipe.learning_rate, clock, recipe.warmup, recipe.anneal_from)
    run.learner.update(objective, rate, recipe.clip, meanwhile=partial(run.feed.prepare, clock.step + 1))
    return loss.detach()


def train(
    run: Run, progress: bool = True, until: float = float("inf"), losses: Losses = step_loss, save_soon: bool = False
) -> Iterator[int]:  # fmt: skip
    """Train until the budget is used up or time.monotonic() passes `until`; yield the step number after each save.

    The state is saved every `save_every` steps and after the last one.

    Args:
        losses: as `train_step` has them.
        save_soon: save after the first step too: something that a kill must not undo has changed.
    """
    keep_freed_memory()
    recipe, clock = run.recipe, run.clock
    if recipe.compile:
        # Bound methods, so that parameter names in the state dict stay as they are.
        run.model.backbone.forward = torch.compile(run.model.backbone.forward)  # type: ignore[method-assign]
        run.model.head.forward = torch.compile(run.model.head.forward, dynamic=True)  # type: ignore[method-assign]
        if run.device.type == "cuda":  # where many small operations wait for each other to start
            run.model.backbone.encode_text = torch.compile(run.model.backbone.encode_text)  # type: ignore[method-assign]
    bar = tqdm(initial=clock.step, desc="train", unit="step", disable=not (progress and run.leads), mininterval=1.0)
    recent: list[Tensor] = []
    over = clock.progress >= 1
    while not over:
        recent.append(train_step(run, losses))
        bar.update()
        over = run.learner.agree(clock.progress >= 1 or time.monotonic() >= until)
        if clock.step % recipe.save_every == 0 or over or save_soon:
            save_soon = False
            mean, recent = run.learner.mean(torch.stack(recent).mean()), []
            run.history.append([clock.step, clock.seconds, mean])
            pace = clock.step * recipe.batch / clock.seconds
            left = clock.seconds_left / 60
            bar.set_postfix_str(f"loss {mean:.4f}, {pace:.0f} img/s, {left:.0f} min left")
            run.save()
            yield clock.step
    bar.close()
