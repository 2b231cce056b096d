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
# Logits whose noise is computed at once: 64-bit words and doubles take about 50 bytes each. With the order "confidence"
# a row of Meissonic samples 4096 tokens from 8192 values in each step, whose noise at once would be 1.7 GB. On a CPU
# fewer stay in its cache: 20 ns a value instead of 37.
NOISE_AT_ONCE = {"cuda": 1 << 22, "cpu": 1 << 18}
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
    at_once = max(1, NOISE_AT_ONCE["cpu" if logits.device.type == "cpu" else "cuda"] // conditional.shape[1])
    parts = [_sample(conditional[i : i + at_once], rows, i) for i in range(0, count, at_once)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([confidence for _, confidence in parts])


def _sample(logits: Tensor, rows: CategoricalRows, first: int) -> tuple[Tensor, Tensor]:
    """`sample_categories` of the tokens from `first` on, from their guided logits (m, K)."""
    part = slice(first, first + len(logits))
    seed, position, step, temperature = (each[part] for each in (rows.seed, rows.position, rows.step, rows.temperature))
    noise = gumbel_ref(seed, CATEGORY, position, step, logits.shape[1])  # (m, K)
    kept = _filter(logits, rows.top_k[part], rows.top_p[part], temperature) if rows.filtered else logits
    tokens = (kept + temperature[:, None] * noise).argmax(-1)
    return tokens, F.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0]


def _filter(logits: Tensor, top_k: Tensor, top_p: Tensor, temperature: Tensor) -> Tensor:
    """Set unlikely tokens to minus infinity: all but the top_k, and of those all behind the first top_p of the
    probability at the row's temperature. The most likely one always stays, and a top_p of 1 keeps all: the rounded sum
    reaches 1 before the tail ends.
    """
    values, index = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    outside = rank >= top_k[:, None].clamp_min(1)
    scaled = (values / temperature[:, None].clamp_min(1e-4)).masked_fill(outside, -torch.inf)
    share = scaled.softmax(-1)
    outside |= (share.cumsum(-1) - share >= top_p[:, None]) & (top_p[:, None] < 1) & (rank > 0)
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
