"""Reference decoding: a whole batch from first to last step, every row with the same sampling parameters.

The definition that inference/engine.py is tested against, for both backbones and both kinds of token. Read it next
to section 3.3 of MAR (arXiv 2406.11838) or Fig. 3 of Fluid (arXiv 2410.13863).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluid_kernels.head_loop import HeadWeights, Rows, head_loop_ref
from model.inference.heads.categorical import (
    CategoricalRows,
    choice_temperature,
    choose_confident,
    sample_categories,
)
from model.inference.heads.chains import embed_conditions, make_chains
from model.inference.known_tokens import KnownTokens, masked_tokens, undecided
from model.inference.orders import annealed, guidance_at, make_order, masked_after
from model.inference.requests import Sampling
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.categorical_head import CategoricalHead
from model.networks.condition import Condition


@torch.inference_mode()
def generate(
    model: AutoregressiveModel, condition: Condition, null: Condition, seeds: Tensor, sampling: Sampling,
    start: KnownTokens | None = None,
) -> Tensor:  # fmt: skip
    """Generate one image per prompt.

    Args:
        condition: that of B prompts.
        null: the condition that guidance steers away from: that of the empty prompt, one row, or those of B negative
            prompts.
        seeds: (B,) int64; a row's image depends on its own seed and prompt only.
        start: tokens known from the start, the same number in every row; steps and schedule apply to the others.
    Returns:
        (B, N, C) tokens for the tokenizer's decoder, or (B, N) int64 if discrete.
    """
    config, device = model.config, seeds.device
    batch, total, steps = len(seeds), config.tokens, sampling.num_inference_steps
    order = make_order(sampling.order, seeds, config.grid)  # (B, N)
    tokens = undecided(config, batch, device)
    known = torch.zeros(batch, total, dtype=torch.bool, device=device)
    if start is not None:
        tokens, known = masked_tokens(start, tokens), start.kept.clone()
        if not config.causal:  # which walks over all positions
            order = order[~start.kept.gather(1, order)].view(batch, -1)  # (B, N'): the tokens left, in the same order
    left = order.shape[1]
    unconditional = null.stack([null] * batch) if len(null) == 1 else null
    for step in range(steps):
        before, after = (masked_after(i, steps, left, sampling.order, config.unmasking) for i in (step - 1, step))
        chosen = order[:, after:before]  # (B, m): the order is walked from its end
        if sampling.order == "confidence":
            chosen = torch.arange(total, device=device).expand(batch, -1)  # all, to choose from
        low, high = sampling.guidance_interval
        inside = low <= step / steps < high
        scale = guidance_at(sampling.guidance_scale, sampling.guidance_schedule, after, total) if inside else 1.0
        time = {"following": steps - 1 - step} if getattr(model.backbone, "timed", False) else {}
        z = _gather(model.backbone(tokens, known, condition, **time), chosen)  # (B·m, D)
        z_uncond = z[:0]  # (0, D), or (B·m, D)
        if scale != 1:
            z_uncond = _gather(model.backbone(tokens, known, unconditional, **time), chosen)
        if isinstance(model.head, CategoricalHead):
            decided, confidence = _sample_ids(model, z, z_uncond, scale, step, seeds, chosen, sampling)
            if sampling.order == "confidence":
                picked = _most_confident(model, confidence, known, step, before - after, seeds, sampling)  # (B, m)
                chosen, decided = picked, decided.gather(1, picked)
        else:
            decided = _sample_vectors(model, z, z_uncond, scale, step, seeds, chosen, sampling)
        row = torch.arange(batch, device=device)[:, None].expand_as(chosen)
        new = ~known[row, chosen]  # False where raster order comes to a kept token
        tokens[row[new], chosen[new]] = decided[new]
        known[row, chosen] = True
    return tokens


def _sample_vectors(
    model: AutoregressiveModel, z: Tensor, z_uncond: Tensor, scale: float, step: int, seeds: Tensor, chosen: Tensor,
    sampling: Sampling,
) -> Tensor:  # fmt: skip
    """Continuous tokens (B, m, C) at positions (B, m) from z (B·m, D), by the diffusion head."""
    head, config, device = model.diffusion_head, model.config, z.device
    last = sampling.diffusion_steps if sampling.diffusion_steps_final is None else sampling.diffusion_steps_final
    length = annealed(sampling.diffusion_steps, last, step, sampling.num_inference_steps)
    ones = torch.ones(len(z), device=device)
    guided = torch.arange(len(z_uncond), device=device)  # all or none
    rows = Rows(
        condition=embed_conditions(head, torch.cat([z, z_uncond]), guided, scale * ones),
        guided=guided,
        chain=torch.zeros(len(z), dtype=torch.int64, device=device),
        guidance=scale * ones,
        temperature=sampling.temperature * ones,
        seed=seeds.repeat_interleave(chosen.shape[1]),
        position=chosen.flatten(),
    )
    weights, chains = HeadWeights.from_head(head), make_chains(head, (length,))
    decided = head_loop_ref(weights, rows, chains, config.update_rule, config.clamp)  # (B·m, C)
    return decided.view(*chosen.shape, -1)


def _sample_ids(
    model: AutoregressiveModel, z: Tensor, z_uncond: Tensor, scale: float, step: int, seeds: Tensor, chosen: Tensor,
    sampling: Sampling,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Discrete tokens at positions (B, m) from z (B·m, D), and the logarithms of their probabilities, (B, m) each."""
    ones, whole = torch.ones(len(z), device=z.device), torch.ones(len(z), dtype=torch.int64, device=z.device)
    rows = CategoricalRows(
        z=torch.cat([z, z_uncond]),
        guided=torch.arange(len(z_uncond), device=z.device),  # all or none
        guidance=scale * ones,
        temperature=sampling.temperature * ones,
        top_k=(model.config.codebook if sampling.top_k is None else sampling.top_k) * whole,
        top_p=(1.0 if sampling.top_p is None else sampling.top_p) * ones,
        seed=seeds.repeat_interleave(chosen.shape[1]),
        position=chosen.flatten(),
        step=(step if sampling.order == "confidence" else 0) * whole,
        filtered=True,
    )
    decided, confidence = sample_categories(model.head(rows.z, model.table), rows)
    return decided.view_as(chosen), confidence.view_as(chosen)


def _most_confident(
    model: AutoregressiveModel, confidence: Tensor, known: Tensor, step: int, count: int, seeds: Tensor,
    sampling: Sampling,
) -> Tensor:  # fmt: skip
    """(B, m) positions of the m tokens to keep out of all N, by `choose_confident`."""
    whole = torch.ones_like(seeds)
    steps = sampling.num_inference_steps
    scale = choice_temperature(sampling.temperature, step, steps, model.config.unmasking)
    picked = choose_confident(confidence, known, seeds, step * whole, scale * whole.float(), count * whole)
    return picked.nonzero()[:, 1].view(len(seeds), count)


def _gather(z: Tensor, chosen: Tensor) -> Tensor:
    """(B, N, D) at positions (B, m) -> (B·m, D)."""
    return z.gather(1, chosen[..., None].expand(-1, -1, z.shape[-1])).flatten(0, 1)
