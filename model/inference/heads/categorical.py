"""Sampling of discrete tokens from logits: guidance, temperature, top-k, top-p, and Gumbel noise from Philox.

    logits = uncond + g · (cond − uncond)
    token  = argmax(kept(logits) + temperature · gumbel(seed, position, step))      softmax(logits / temperature)

Temperature 0 is the most likely token. With the order "confidence", every undecided token is sampled in each step, and
the most confident ones are kept (MaskGIT, arXiv 2202.04200); its noise is new in each step. In all other orders a token
is sampled once, and its noise does not depend on the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fluid_kernels.ops.linear import PackedLinear
from fluid_kernels.philox import CATEGORY, CHOICE, gumbel_ref

CHOICE_TEMPERATURE = 4.5  # of the noise on confidence at the first step; it falls linearly to 0 at the last (MaskGIT)
AMUSED_TEMPERATURE = 2.0  # the same in diffusers' scheduler of aMUSEd


@dataclass(frozen=True)
class CategoricalRows:
    """M tokens to sample."""

    z: Tensor  # (M + G, D) of each token, then the unconditional ones of the guided tokens
    guided: Tensor  # (G,) int64, ascending: tokens with guidance
    guidance: Tensor  # (M,) float32 scale; read for guided tokens only
    temperature: Tensor  # (M,) float32
    top_k: Tensor  # (M,) int64, number of likely tokens to sample from
    top_p: Tensor  # (M,) float32, share of the probability to sample from
    seed: Tensor  # (M,) int64
    position: Tensor  # (M,) int64
    step: Tensor  # (M,) int64, for the noise: the AR step with the order "confidence", else 0
    filtered: bool  # any top_k or top_p has an effect

    def __len__(self) -> int:
        return len(self.seed)


class CategoricalSampler:
    """The categorical head's weights, prepared for sampling."""

    def __init__(self, table: Tensor, bias: Tensor, dtype: torch.dtype):
        """table: (K, D). dtype: of the product, bfloat16 or float32; everything behind it is float32."""
        self.layer = PackedLinear(table, bias, dtype)

    def __call__(self, rows: CategoricalRows) -> tuple[Tensor, Tensor]:
        """(M,) int64 tokens, and (M,) float32 logarithms of their probabilities."""
        return sample_categories(self.layer(rows.z).float(), rows)

    def buckets(self, most: int) -> list[tuple[int, int]]:
        """None: nothing is compiled or captured for a shape."""
        return []


def sample_categories(logits: Tensor, rows: CategoricalRows) -> tuple[Tensor, Tensor]:
    """Tokens and the logarithms of their probabilities, from logits (M + G, K) in the order of `rows.z`."""
    count = len(rows)
    conditional = logits[:count]
    if len(logits) > count:
        unconditional = logits[count:]
        moved = unconditional + rows.guidance[rows.guided, None] * (conditional[rows.guided] - unconditional)
        conditional = conditional.index_copy(0, rows.guided, moved)
    noise = gumbel_ref(rows.seed, CATEGORY, rows.position, rows.step, conditional.shape[1])  # (M, K)
    kept = _filter(conditional, rows) if rows.filtered else conditional
    tokens = (kept + rows.temperature[:, None] * noise).argmax(-1)
    return tokens, F.log_softmax(conditional, -1).gather(1, tokens[:, None])[:, 0]


def _filter(logits: Tensor, rows: CategoricalRows) -> Tensor:
    """Set unlikely tokens to minus infinity: all but the top_k, and of those all behind the first top_p of the
    probability at the row's temperature. The most likely one always stays.
    """
    values, index = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    outside = rank >= rows.top_k[:, None].clamp_min(1)
    scaled = (values / rows.temperature[:, None].clamp_min(1e-4)).masked_fill(outside, -torch.inf)
    share = scaled.softmax(-1)
    outside |= (share.cumsum(-1) - share >= rows.top_p[:, None]) & (rank > 0)
    return logits.scatter(1, index, values.masked_fill(outside, -torch.inf))


def choice_temperature(temperature: float, step: int, steps: int, unmasking: str = "maskgit") -> float:
    """Scale of the noise on confidence in AR step `step` of `steps`.

    Args:
        temperature: the request's.
        unmasking: of the model's config. "amused" falls from AMUSED_TEMPERATURE at the first step to 0 at the last.
    """
    if unmasking == "amused":
        return AMUSED_TEMPERATURE * temperature * (1 - step / max(steps - 1, 1))
    return CHOICE_TEMPERATURE * temperature * (1 - (step + 1) / steps)


def choose_confident(
    confidence: Tensor, known: Tensor, seed: Tensor, step: Tensor, scale: Tensor, count: Tensor
) -> Tensor:
    """(B, N) bool, True for the sampled tokens that a step with the order "confidence" keeps.

    Args:
        confidence: (B, N) logarithms of the sampled tokens' probabilities.
        known: (B, N) bool, tokens decided before; never chosen.
        seed, step: (B,) int64. scale: (B,) of the noise, see `choice_temperature`.
        count: (B,) int64, the number of tokens to keep in each row.
    """
    place = torch.arange(confidence.shape[1], device=confidence.device)
    noise = gumbel_ref(seed[:, None], CHOICE, place, step[:, None], 1)[..., 0]  # (B, N)
    score = (confidence + scale[:, None] * noise).masked_fill(known, -torch.inf)
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < count[:, None]
