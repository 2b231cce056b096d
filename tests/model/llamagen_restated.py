"""LlamaGen's text-to-image model restated as plainly as possible: one image, no cache, official tensor names.

Written from the paper and a description of the released code, as an independent check of
networks/imported/prefix_causal.py; it shares no code with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
CODES, HEADS = 60, 2


def random_state(width: int = 32, hidden: int = 48, layers: int = 2, text: int = 16, length: int = 120) -> State:
    """A small checkpoint under official names."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_embedding.uncond_embedding": (length, text), "cls_embedding.cap_proj.fc1.weight": (width, text),
        "cls_embedding.cap_proj.fc2.weight": (width, width), "tok_embeddings.weight": (CODES, width),
        "norm.weight": (width,), "output.weight": (CODES, width),
    }  # fmt: skip
    for i in range(layers):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * width, width), f"layers.{i}.attention.wo.weight": (width, width),
            f"layers.{i}.feed_forward.w1.weight": (hidden, width), f"layers.{i}.ffn_norm.weight": (width,),
            f"layers.{i}.feed_forward.w2.weight": (width, hidden), f"layers.{i}.attention_norm.weight": (width,),
            f"layers.{i}.feed_forward.w3.weight": (hidden, width),
        }  # fmt: skip
    state = {}
    for name, shape in shapes.items():
        fan = 1 if len(shape) == 1 or ("embed" in name and "cap_proj" not in name) else shape[1]
        state[name] = torch.randn(shape, generator=generator) * (0.1 if len(shape) == 1 else fan**-0.5)
        if "norm" in name:
            state[name] += 1
    state["output.weight"] *= 0.5
    return state


def logits(state: State, caption: Tensor, count: int, ids: Tensor, grid: int) -> Tensor:
    """Logits of the next token.

    Args:
        caption: (L, E) as the model gets it, the caption's tokens at its end.
        count: number of those tokens.
        ids: (n,) image tokens so far.
    """
    length = len(caption)
    x = F.gelu(caption @ state["cls_embedding.cap_proj.fc1.weight"].T, approximate="tanh")
    x = torch.cat([x @ state["cls_embedding.cap_proj.fc2.weight"].T, state["tok_embeddings.weight"][ids]])
    place = torch.arange(len(x))
    seen = (place[None] <= place[:, None]) & (place >= length - count)[None] | torch.eye(len(x), dtype=torch.bool)
    turn = _turns(length, len(ids), grid, x.shape[1] // HEADS)
    layer = 0
    while f"layers.{layer}.ffn_norm.weight" in state:
        name = f"layers.{layer}"
        h = _rms(x, state[f"{name}.attention_norm.weight"]) @ state[f"{name}.attention.wqkv.weight"].T
        q, k, v = (part.unflatten(1, (HEADS, -1)).transpose(0, 1) for part in h.chunk(3, 1))  # (H, n, d)
        q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(2, (-1, 2)).contiguous()) * turn).flatten(2)
                for t in (q, k))  # fmt: skip
        scores = (q @ k.transpose(1, 2) * q.shape[2] ** -0.5).masked_fill(~seen, -torch.inf)
        x = x + (scores.softmax(2) @ v).transpose(0, 1).flatten(1) @ state[f"{name}.attention.wo.weight"].T
        h = _rms(x, state[f"{name}.ffn_norm.weight"])
        gate, up = (h @ state[f"{name}.feed_forward.{part}.weight"].T for part in ("w1", "w3"))
        x = x + (F.silu(gate) * up) @ state[f"{name}.feed_forward.w2.weight"].T
        layer += 1
    return _rms(x[-1], state["norm.weight"]) @ state["output.weight"].T


def _turns(length: int, tokens: int, grid: int, head: int) -> Tensor:
    """(L + n, d/2) complex factors: zero for text; for image tokens, half of them by row and half by column."""
    factors = torch.zeros(length + tokens, head // 2, dtype=torch.complex64)
    speed = 10000.0 ** -(torch.arange(0, head // 2, 2).float() / (head // 2))
    for token in range(tokens):
        angle = torch.cat([token // grid * speed, token % grid * speed])
        factors[length + token] = torch.polar(torch.ones_like(angle), angle)
    return factors


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight
