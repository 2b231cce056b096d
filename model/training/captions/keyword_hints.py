"""Hints for words outside a model's vocabulary: of the names that they are keywords of, those nearest in meaning.

An emoji has up to 30 keywords, most of them far from what it shows ("cup" is one of a plunger's), and "food" is one of
34 emoji's. The text encoder, which is at hand in training, tells near ones from far ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.networks.text_encoder import TextEncoder

HINTED = 3  # names for one word
LEAST = 0.25  # cosine below which a name is no hint: "cup" and "plunger" have 0.25, "coffee" and "hot beverage" 0.54
BATCH = 128


def keyword_hints(keywords: Mapping[str, Sequence[str]], encoder: TextEncoder) -> dict[str, list[str]]:
    """For each word the names that it hints at, the nearest first; words that hint at none are left out.

    Args:
        keywords: words, and the names that they are keywords of.
    """
    words, names = list(keywords), sorted({name for of in keywords.values() for name in of})
    if not words:
        return {}
    place = {name: i for i, name in enumerate(names)}
    word_means, name_means = mean_states(words, encoder), mean_states(names, encoder)
    hints = {}
    for word, mean in zip(words, word_means, strict=True):
        near = {name: float(mean @ name_means[place[name]]) for name in keywords[word]}
        found = sorted((name for name in near if near[name] > LEAST), key=lambda name: (-near[name], name))
        if found:
            hints[word] = found[:HINTED]
    return hints


@torch.no_grad()
def mean_states(texts: Sequence[str], encoder: TextEncoder) -> Tensor:
    """(T, E) unit vectors, the mean of each text's token states: what MiniLM was trained to compare sentences by."""
    parts = []
    for start in range(0, len(texts), BATCH):
        states, mask = encoder.encode(texts[start : start + BATCH], tight=True)  # (B, L, E), (B, L)
        total = (states.float() * mask[..., None]).sum(1)
        parts.append(F.normalize(total, dim=-1).cpu())
    return torch.cat(parts)
