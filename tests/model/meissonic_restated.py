"""Meissonic restated as plainly as possible: one image, official tensor names, no module of any library.

Written from the paper and a description of the released code, as an independent check of networks/imported/meissonic.py
and of diffusers' blocks inside it; it shares no code with them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
AXES = (4, 8, 4)  # of the folder in published.py


def logits(state: State, ids: Tensor, text: Tensor, pooled: Tensor, following: int, size: int) -> Tensor:
    """(g, g) ids with the mask token, text states (L, E), pooled (P,) -> (g·g, K). size: the image's side in pixels."""
    heads, halved = 2, "down_block.downsample.conv.weight" in state
    micro = torch.cat([_sinusoid(value) for value in (size, size, 0, 0, 6)])
    w = state["cond_embed.linear_1.weight"]
    condition = state["cond_embed.linear_2.weight"] @ F.silu(w @ torch.cat([pooled, micro]))
    time = _mlp(state, "time_text_embed.timestep_embedder", _sinusoid(1000 * following))
    temb = F.silu(time + _mlp(state, "time_text_embed.text_embedder", condition))  # every use begins with SiLU

    x = _rms(state["embed.embeddings.weight"][ids], state["embed.layer_norm.weight"])  # (g, g, D)
    x = x @ state["embed.conv.weight"][:, :, 0, 0].T
    if halved:
        x = _rms(x, state["down_block.downsample.norm.weight"])
        kernel, side = state["down_block.downsample.conv.weight"], len(x) // 2
        x = sum(x[i::2, j::2] @ kernel[:, :, i, j].T for i in (0, 1) for j in (0, 1))  # type: ignore[assignment]
        assert x.shape[:2] == (side, side)
    side = len(x)
    x = _rms(x.flatten(0, 1), state["project_to_hidden_norm.weight"]) @ state["project_to_hidden.weight"].T
    e = _rms(_linear(state, "context_embedder", text), state["encoder_proj_layer_norm.weight"])

    angles = _angles(side, len(e))
    block = 0
    while f"transformer_blocks.{block}.norm1.linear.weight" in state:
        e, x = _double(state, f"transformer_blocks.{block}", e, x, temb, angles, heads)
        block += 1
    both, block = torch.cat([e, x]), 0
    while f"single_transformer_blocks.{block}.norm.linear.weight" in state:
        both = _single(state, f"single_transformer_blocks.{block}", both, temb, angles, heads)
        block += 1
    x = _rms(both[len(e) :], state["project_from_hidden_norm.weight"]) @ state["project_from_hidden.weight"].T
    x = x.unflatten(0, (side, side))
    if halved:
        x = _rms(x, state["up_block.upsample.norm.weight"])
        kernel = state["up_block.upsample.conv.weight"]  # (in, out, 2, 2)
        wide = x.new_zeros(2 * side, 2 * side, x.shape[-1])
        for i in (0, 1):
            for j in (0, 1):
                wide[i::2, j::2] = x @ kernel[:, :, i, j]
        x = wide
    x = x.flatten(0, 1) @ state["mlm_layer.conv1.weight"][:, :, 0, 0].T
    return _rms(x, state["mlm_layer.layer_norm.weight"]) @ state["mlm_layer.conv2.weight"][:, :, 0, 0].T


def _double(
    state: State, name: str, e: Tensor, x: Tensor, temb: Tensor, angles: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    mods = [_linear(state, f"{name}.{norm}.linear", temb).chunk(6) for norm in ("norm1_context", "norm1")]
    normed = [_layer_norm(v) * (1 + m[1]) + m[0] for v, m in zip((e, x), mods, strict=True)]
    q, k, v = (
        torch.cat([_heads(_linear(state, f"{name}.attn.{t}", normed[0]), heads),
                   _heads(_linear(state, f"{name}.attn.{i}", normed[1]), heads)])
        for t, i in (("add_q_proj", "to_q"), ("add_k_proj", "to_k"), ("add_v_proj", "to_v"))
    )  # fmt: skip  # (L + n, H, d)
    length = len(e)
    q, k = (
        torch.cat([_rms(part[:length], state[f"{name}.attn.norm_added_{which}.weight"]),
                   _rms(part[length:], state[f"{name}.attn.norm_{which}.weight"])])
        for part, which in ((q, "q"), (k, "k"))
    )  # fmt: skip
    out = _attend(q, k, v, angles)
    found = []
    for value, m, attended, way, ff in (
        (e, mods[0], out[:length], "to_add_out", "ff_context"), (x, mods[1], out[length:], "to_out.0", "ff")
    ):  # fmt: skip
        value = value + m[2] * _linear(state, f"{name}.attn.{way}", attended)
        hidden = _layer_norm(value) * (1 + m[4]) + m[3]
        hidden = F.gelu(_linear(state, f"{name}.{ff}.net.0.proj", hidden), approximate="tanh")
        found.append(value + m[5] * _linear(state, f"{name}.{ff}.net.2", hidden))
    return found[0], found[1]


def _single(state: State, name: str, both: Tensor, temb: Tensor, angles: Tensor, heads: int) -> Tensor:
    shift, scale, gate = _linear(state, f"{name}.norm.linear", temb).chunk(3)
    normed = _layer_norm(both) * (1 + scale) + shift
    q, k, v = (_heads(_linear(state, f"{name}.attn.to_{part}", normed), heads) for part in "qkv")
    q, k = _rms(q, state[f"{name}.attn.norm_q.weight"]), _rms(k, state[f"{name}.attn.norm_k.weight"])
    hidden = F.gelu(_linear(state, f"{name}.proj_mlp", normed), approximate="tanh")
    return both + gate * _linear(state, f"{name}.proj_out", torch.cat([_attend(q, k, v, angles), hidden], -1))


def _attend(q: Tensor, k: Tensor, v: Tensor, angles: Tensor) -> Tensor:
    """(n, H, d) each -> (n, D)."""
    q, k = (_turned(part, angles).transpose(0, 1) for part in (q, k))  # (H, n, d)
    weight = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weight @ v.transpose(0, 1)).transpose(0, 1).flatten(1)


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Neighbouring channels as complex numbers, turned."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).double().contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None])
    return turned.flatten(-2).float()


def _angles(side: int, length: int) -> Tensor:
    """(L + n, d/2): text stands at 0; an image token at (0, row, column)."""
    rows = [(0, 0, 0)] * length + [(0, row, column) for row in range(side) for column in range(side)]
    place = torch.tensor(rows, dtype=torch.float64)
    parts = [place[:, i : i + 1] * 10000.0 ** -(torch.arange(0, n, 2).double() / n) for i, n in enumerate(AXES)]
    return torch.cat(parts, 1)


def _sinusoid(value: float) -> Tensor:
    """(256,): cosines, then sines."""
    angle = value * torch.exp(-math.log(10000) * torch.arange(128).float() / 128)
    return torch.cat([angle.cos(), angle.sin()])


def _mlp(state: State, name: str, x: Tensor) -> Tensor:
    return _linear(state, f"{name}.linear_2", F.silu(_linear(state, f"{name}.linear_1", x)))


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1))


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def _layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * (x.var(-1, unbiased=False, keepdim=True) + 1e-6).rsqrt()
