"""What a mean flow learns from: guided paths of a flow head, and the mean velocities over the steps along them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS
from model.flow import flow_schedule
from model.networks.diffusion_head import DiffusionHead
from model.sampling_presets import MEAN_FLOW_GUIDANCE

NODES = 24  #: parts of a path, of one midpoint step each; numbers of diffusion steps that divide it are trained
CHAINS = tuple(count for count in range(1, NODES + 1) if NODES % count == 0)  # 1, 2, 3, 4, 6, 8, 12, 24
#: Shares of paths with a scale of 1 and with one between 0 and 1; the others are uniform from 1 to MEAN_FLOW_GUIDANCE.
UNGUIDED, BELOW_ONE = 0.2, 0.1


def sample_scales(count: int, generator: torch.Generator) -> Tensor:
    """(count,) guidance scales."""
    kind, uniform = torch.rand(2, count, generator=generator)
    guided = torch.where(kind < UNGUIDED + BELOW_ONE, uniform, 1 + (MEAN_FLOW_GUIDANCE - 1) * uniform)
    return torch.where(kind < UNGUIDED, 1.0, guided)


def node_times(shift: float) -> Tensor:
    """(NODES + 1,) int64 timesteps of a path's nodes, ascending from 0."""
    return F.pad(flow_schedule(NODES, shift).timesteps, (1, 0))


@torch.no_grad()
def guided_paths(
    head: DiffusionHead, z: Tensor, null: Tensor, guidance: Tensor, noise: Tensor, times: Tensor
) -> Tensor:
    """Integrate a flow head's guided velocity from noise to data by the midpoint rule.

    Args:
        z, null: (M, D) with the prompt and without. guidance: (M,). noise: (M, C). times: as `node_times` has them.
    Returns:
        (NODES + 1, M, C), entry k at times[k]: entry 0 is the token, the last one the noise.
    """
    conditions = head.embed_condition(torch.cat([z, null]))  # (2M, W)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        both = head.denoise(x.repeat(2, 1), head.embed_time(t[None]) + conditions).float()
        with_prompt, without = both.chunk(2)
        return without + guidance[:, None] * (with_prompt - without)

    x, path = noise, [noise]
    for end, start in zip(times[:-1].flip(0).float(), times[1:].flip(0).float(), strict=True):
        step = (start - end) / TRAIN_STEPS
        middle = x - step / 2 * velocity(x, start)
        x = x - step * velocity(middle, (start + end) / 2)
        path.append(x)
    return torch.stack(path[::-1])


def sample_steps(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random steps between nodes, (first, last) of that shape with first < last: every chain as often as every other,
    and every step within it."""
    chain = torch.tensor(CHAINS)[torch.randint(len(CHAINS), shape, generator=generator)]
    place = (torch.rand(shape, generator=generator) * chain).long()
    length = NODES // chain
    return place * length, (place + 1) * length


def mean_flow_loss(
    student: DiffusionHead, path: Tensor, times: Tensor, first: Tensor, last: Tensor, z: Tensor, null: Tensor,
    guidance: Tensor,
) -> Tensor:  # fmt: skip
    """Mean squared error of the student's guided mean velocity, over the square of the scale where that is above 1.

    Args:
        path: (NODES + 1, M, C) of `guided_paths`, with the z, null and guidance that it was given.
        first, last: (R, M) nodes of `sample_steps`: R steps of each path.
    """
    draws, token = len(first), torch.arange(first.shape[1])
    start, end = path[last, token], path[first, token]  # (R, M, C)
    t, length = times[last], times[last] - times[first]  # (R, M)
    target = (start - end) * (TRAIN_STEPS / length[..., None])
    guided = guidance != 1  # as the loop has it: other tokens know no scale
    conditions = [
        student.embed_condition(half) + torch.where(guided[:, None], scale, 0.0)
        for half, scale in zip((z, null), student.embed_scale(guidance), strict=True)
    ]
    time = student.embed_time(t.flatten().float(), length.flatten().float())
    with_prompt, without = (
        student.denoise(start.flatten(0, 1), time + half.repeat(draws, 1)).float().view_as(target)
        for half in conditions
    )
    error = without + guidance[:, None] * (with_prompt - without) - target
    return (error / guidance.clamp_min(1)[:, None]).square().mean()
