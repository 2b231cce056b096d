"""The plain algorithm: a whole batch from first to last step, every row with the same sampling.

This is the definition that inference/engine.py is tested against. Read it next to section 3.3 of MAR (arXiv 2406.11838)
or Fig. 3 of Fluid (arXiv 2410.13863).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.diffusion import make_schedule
from model.inference.known_tokens import Given
from model.inference.orders import annealed, guidance_at, make_order, masked_after
from model.inference.requests import Sampling
from model.inference.sampler import PackedRows, draw_tokens
from model.networks.condition import Condition
from model.networks.random_order_model import RandomOrderModel


@torch.inference_mode()
def generate(
    model: RandomOrderModel, condition: Condition, null: Condition, seeds: Tensor, sampling: Sampling,
    given: Given | None = None,
) -> Tensor:  # fmt: skip
    """Draw one picture per prompt.

    Args:
        condition: of B prompts. null: of the empty prompt, one row.
        seeds: (B,) int64; a row's picture depends on its own seed and prompt only.
        given: tokens known from the start, as many in every row; the steps and their schedule are for the others.
    Returns:
        (B, N, C) tokens for the tokenizer's decoder.
    """
    config, device = model.config, seeds.device
    batch, total, steps = len(seeds), config.tokens, sampling.num_inference_steps
    order = make_order(sampling.order, seeds, config.grid)  # (B, N)
    tokens = torch.zeros(batch, total, config.channels, device=device)
    known = torch.zeros(batch, total, dtype=torch.bool, device=device)
    if given is not None:
        tokens, known = torch.where(given.stays[..., None], given.tokens, tokens), given.stays.clone()
        order = order[~given.stays.gather(1, order)].view(batch, -1)  # (B, M): what is left, in the same order
    left = order.shape[1]
    unconditional = null.stack([null] * batch)
    for step in range(steps):
        before, after = masked_after(step - 1, steps, left), masked_after(step, steps, left)
        chosen = order[:, after:before]  # (B, m): the order is walked from its end
        low, high = sampling.guidance_interval
        inside = low <= step / steps < high
        scale = guidance_at(sampling.guidance_scale, sampling.guidance_schedule, after, total) if inside else 1.0
        last = sampling.diffusion_steps if sampling.diffusion_steps_final is None else sampling.diffusion_steps_final
        schedule = make_schedule(annealed(sampling.diffusion_steps, last, step, steps)).to(device)
        z = _gather(model.backbone(tokens, known, condition), chosen)  # (B·m, D)
        z_uncond = _gather(model.backbone(tokens, known, unconditional), chosen) if scale != 1 else z[:0]
        ones = torch.ones(len(z), 1, device=device)
        rows = PackedRows(
            z=z, z_uncond=z_uncond, guided=ones[:, 0].bool() & (scale != 1), guidance=scale * ones,
            temperature=sampling.temperature * ones, seed=seeds.repeat_interleave(chosen.shape[1]),
            position=chosen.flatten(),
        )  # fmt: skip
        drawn = draw_tokens(model.head, rows, schedule, config.prediction, config.clamp)  # (B·m, C)
        row = torch.arange(batch, device=device)[:, None].expand_as(chosen)
        tokens[row, chosen] = drawn.view(batch, -1, config.channels)
        known[row, chosen] = True
    return tokens


def _gather(z: Tensor, chosen: Tensor) -> Tensor:
    """(B, N, D) at positions (B, m) -> (B·m, D)."""
    return z.gather(1, chosen[..., None].expand(-1, -1, z.shape[-1])).flatten(0, 1)
