"""Reference decoding: a whole batch from first to last step, every row with the same sampling parameters.

The definition that inference/engine.py is tested against. Read it next to section 3.3 of MAR (arXiv 2406.11838) or
Fig. 3 of Fluid (arXiv 2410.13863).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluid_kernels.head_loop import HeadWeights, Rows, head_loop_ref
from model.inference.chains import make_chains
from model.inference.known_tokens import KnownTokens
from model.inference.orders import annealed, guidance_at, make_order, masked_after
from model.inference.requests import Sampling
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.condition import Condition


@torch.inference_mode()
def generate(
    model: AutoregressiveModel, condition: Condition, null: Condition, seeds: Tensor, sampling: Sampling,
    start: KnownTokens | None = None,
) -> Tensor:  # fmt: skip
    """Generate one image per prompt.

    Args:
        condition: that of B prompts.
        null: the condition that guidance leads away from: that of the empty prompt, one row, or those of B negative
            prompts.
        seeds: (B,) int64; a row's image depends on its own seed and prompt only.
        start: tokens known from the start, the same number in every row; steps and schedule apply to the others.
    Returns:
        (B, N, C) tokens for the tokenizer's decoder.
    """
    config, device = model.config, seeds.device
    batch, total, steps = len(seeds), config.tokens, sampling.num_inference_steps
    order = make_order(sampling.order, seeds, config.grid)  # (B, N)
    tokens = torch.zeros(batch, total, config.channels, device=device)
    known = torch.zeros(batch, total, dtype=torch.bool, device=device)
    if start is not None:
        tokens, known = torch.where(start.kept[..., None], start.tokens, tokens), start.kept.clone()
        order = order[~start.kept.gather(1, order)].view(batch, -1)  # (B, N'): the tokens left, in the same order
    left = order.shape[1]
    unconditional = null.stack([null] * batch) if len(null) == 1 else null
    weights = HeadWeights.from_head(model.head)
    for step in range(steps):
        before, after = (masked_after(i, steps, left) for i in (step - 1, step))
        chosen = order[:, after:before]  # (B, m): the order is walked from its end
        low, high = sampling.guidance_interval
        inside = low <= step / steps < high
        scale = guidance_at(sampling.guidance_scale, sampling.guidance_schedule, after, total) if inside else 1.0
        last = sampling.diffusion_steps if sampling.diffusion_steps_final is None else sampling.diffusion_steps_final
        chains = make_chains(model.head, (annealed(sampling.diffusion_steps, last, step, steps),))
        z = _gather(model.backbone(tokens, known, condition), chosen)  # (B·m, D)
        z_uncond = _gather(model.backbone(tokens, known, unconditional), chosen) if scale != 1 else z[:0]  # or (0, D)
        ones = torch.ones(len(z), device=device)
        rows = Rows(
            condition=model.head.embed_condition(torch.cat([z, z_uncond])),
            guided=torch.arange(len(z_uncond), device=device),  # all or none
            chain=torch.zeros(len(z), dtype=torch.int64, device=device),
            guidance=scale * ones,
            temperature=sampling.temperature * ones,
            seed=seeds.repeat_interleave(chosen.shape[1]),
            position=chosen.flatten(),
        )
        decided = head_loop_ref(weights, rows, chains, config.update_rule, config.clamp)  # (B·m, C)
        row = torch.arange(batch, device=device)[:, None].expand_as(chosen)
        tokens[row, chosen] = decided.view(batch, -1, config.channels)
        known[row, chosen] = True
    return tokens


def _gather(z: Tensor, chosen: Tensor) -> Tensor:
    """(B, N, D) at positions (B, m) -> (B·m, D)."""
    return z.gather(1, chosen[..., None].expand(-1, -1, z.shape[-1])).flatten(0, 1)
