"""The loss of a mean flow: the steps to learn, the first head's paths over them, and the error of the mean velocity."""

from __future__ import annotations

import torch
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS
from model.flow import add_flow_noise, flow_schedule
from model.networks.diffusion_head import DiffusionHead

CHAINS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 25, 50)  #: numbers of diffusion steps that are trained
#: Substeps of the midpoint rule within a step that is at least so long, in timesteps.
SUBSTEPS = {300: 4, 100: 2, 0: 1}


def step_tables(shift: float) -> tuple[Tensor, Tensor]:
    """Timesteps (chains, longest) that each step of each chain starts from, and how far it goes down; 0 is padding."""
    starts, falls = torch.zeros(2, len(CHAINS), max(CHAINS), dtype=torch.int64)
    for row, count in enumerate(CHAINS):
        timesteps = flow_schedule(count, shift).timesteps
        starts[row, :count] = timesteps
        falls[row, :count] = timesteps.diff(prepend=torch.zeros(1, dtype=torch.int64))
    return starts, falls


def sample_steps(tables: tuple[Tensor, Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random (count,) timesteps and lengths: every chain as often as every other, and every step within it."""
    chain = torch.randint(len(CHAINS), (count,), generator=generator)
    place = (torch.rand(count, generator=generator) * torch.tensor(CHAINS)[chain]).long()
    return tables[0][chain, place], tables[1][chain, place]


@torch.no_grad()
def mean_velocity(head: DiffusionHead, x: Tensor, t: Tensor, length: Tensor, z: Tensor) -> Tensor:
    """Mean velocity of a flow head's path over a step: x (M, C), t and length (M,) timesteps, z (M, D) -> (M, C).

    Integrated by the midpoint rule, longer steps in more parts.
    """
    found, left = torch.empty_like(x), torch.ones_like(t, dtype=torch.bool)
    for least, parts in SUBSTEPS.items():  # the longest first
        rows = (left & (length >= least)).nonzero()[:, 0]
        left[rows] = False
        found[rows] = _integrated(head, x[rows], t[rows], length[rows], z[rows], parts)
    return found


def _integrated(head: DiffusionHead, x: Tensor, t: Tensor, length: Tensor, z: Tensor, parts: int) -> Tensor:
    condition = head.embed_condition(z)
    part = length.float() / parts  # (M,) timesteps
    step = part[:, None] / TRAIN_STEPS  # (M, 1), of a path of length 1
    now, total = t.float(), torch.zeros_like(x)
    for _ in range(parts):
        u = head.denoise(x, head.embed_time(now) + condition)
        u = head.denoise(x - step / 2 * u, head.embed_time(now - part / 2) + condition)
        x, now, total = x - step * u, now - part, total + u
    return total / parts


def mean_flow_loss(
    student: DiffusionHead, teacher: DiffusionHead, tokens: Tensor, noise: Tensor, t: Tensor, length: Tensor, z: Tensor
) -> Tensor:
    """Mean squared error of the student's mean velocity.

    Args:
        teacher: a trained flow head.
        tokens, noise: (M, C) clean tokens and unit noise, of which the path's points are made.
        t, length: (M,) timesteps of `sample_steps`.
        z: (M, D) of the backbone.
    """
    x = add_flow_noise(tokens, t, noise)
    target = mean_velocity(teacher, x, t, length, z).float()
    return (student(x, t, z, length).float() - target).square().mean()
