"""Reference decoding: a whole batch from first to last step, every row with the same settings.

The definition that inference/engine.py is tested against. Read it next to section 3.3 of MAR (arXiv 2406.11838) or
Fig. 3 of Fluid (arXiv 2410.13863).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluid_kernels.head_loop import HeadWeights, Rows, head_loop_ref
from model.inference.chains import make_chains
from model.inference.known_tokens import KnownTokens
from model.inference.orders import annealed, guidance_at, make_order, masked_after
from model.networks.condition import Condition
from model.networks.random_order_model import RandomOrderModel


@dataclass(frozen=True, slots=True)
class Settings:
    """Decoding parameters, the same for every row."""

    steps: int = 16  # autoregressive steps
    diffusion_steps: int = 25  # kept timesteps of the head's chain
    guidance: float = 3.0  # 1: no guidance
    guidance_schedule: str = "constant"  # or "linear": from 1 up to `guidance`
    temperature: float = 1.0
    order: str = "random"  # or "halton"
    diffusion_steps_final: int | None = None  # of the last AR step, annealed linearly; None: no change
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # share of the AR steps in which guidance acts


@torch.inference_mode()
def generate(
    model: RandomOrderModel, condition: Condition, null: Condition, seeds: Tensor, settings: Settings,
    start: KnownTokens | None = None,
) -> Tensor:  # fmt: skip
    """Generate one image per prompt.

    Args:
        condition: of B prompts.
        null: of the empty prompt, one row.
        seeds: (B,) int64; a row's image depends on its own seed and prompt only.
        start: tokens known from the start, the same number in every row; steps and schedule are for the others.
    Returns:
        (B, N, C) tokens for the tokenizer's decoder.
    """
    config, device = model.config, seeds.device
    batch, total = len(seeds), config.tokens
    order = make_order(settings.order, seeds, config.grid)  # (B, N)
    tokens = torch.zeros(batch, total, config.channels, device=device)
    known = torch.zeros(batch, total, dtype=torch.bool, device=device)
    if start is not None:
        tokens, known = torch.where(start.kept[..., None], start.tokens, tokens), start.kept.clone()
        order = order[~start.kept.gather(1, order)].view(batch, -1)  # (B, N'): the tokens left, in the same order
    left = order.shape[1]
    unconditional = null.stack([null] * batch)
    weights = HeadWeights.from_head(model.head)
    for step in range(settings.steps):
        before, after = (masked_after(i, settings.steps, left) for i in (step - 1, step))
        chosen = order[:, after:before]  # (B, m): the order is walked from its end
        low, high = settings.guidance_interval
        inside = low <= step / settings.steps < high
        scale = guidance_at(settings.guidance, settings.guidance_schedule, after, total) if inside else 1.0
        last = settings.diffusion_steps if settings.diffusion_steps_final is None else settings.diffusion_steps_final
        chains = make_chains(model.head, (annealed(settings.diffusion_steps, last, step, settings.steps),))
        z = _gather(model.backbone(tokens, known, condition), chosen)  # (B·m, D)
        z_uncond = _gather(model.backbone(tokens, known, unconditional), chosen) if scale != 1 else z[:0]  # or (0, D)
        ones = torch.ones(len(z), device=device)
        rows = Rows(
            condition=model.head.embed_condition(torch.cat([z, z_uncond])),
            guided=torch.arange(len(z_uncond), device=device),  # all or none
            chain=torch.zeros(len(z), dtype=torch.int64, device=device),
            guidance=scale * ones,
            temperature=settings.temperature * ones,
            seed=seeds.repeat_interleave(chosen.shape[1]),
            position=chosen.flatten(),
        )
        decided = head_loop_ref(weights, rows, chains, config.prediction, config.clamp)  # (B·m, C)
        row = torch.arange(batch, device=device)[:, None].expand_as(chosen)
        tokens[row, chosen] = decided.view(batch, -1, config.channels)
        known[row, chosen] = True
    return tokens


def _gather(z: Tensor, chosen: Tensor) -> Tensor:
    """(B, N, D) at positions (B, m) -> (B·m, D)."""
    return z.gather(1, chosen[..., None].expand(-1, -1, z.shape[-1])).flatten(0, 1)
