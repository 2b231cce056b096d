"""MAR restated as plainly as possible: one image at a time, loops, no batching, official tensor names.

Written from the paper and from descriptions of the released code, as an independent check of networks/mar.py and the
decoding loop; it shares no code with them. `state` maps official names to tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Noise = Callable[[int, int], Tensor]  # (position, original timestep or 1000 for the start) -> (C,)


def random_state(
    width: int = 48, depth: int = 2, grid: int = 4, channels: int = 4, head: int = 40, head_depth: int = 2,
    classes: int = 5, buffer: int = 6, seed: int = 0,
) -> State:  # fmt: skip
    """A small checkpoint under official names, with no tensor left at zero."""
    generator = torch.Generator().manual_seed(seed)
    tokens = grid * grid
    shapes: dict[str, tuple[int, ...]] = {
        "class_emb.weight": (classes, width), "fake_latent": (1, width), "mask_token": (1, 1, width),
        "encoder_pos_embed_learned": (1, buffer + tokens, width),
        "decoder_pos_embed_learned": (1, buffer + tokens, width),
        "diffusion_pos_embed_learned": (1, tokens, width),
    }  # fmt: skip

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    linear("z_proj", width, channels)
    linear("decoder_embed", width, width)
    for name in ("z_proj_ln", "encoder_norm", "decoder_norm"):
        norm(name, width)
    for part in ("encoder", "decoder"):
        for i in range(depth):
            block = f"{part}_blocks.{i}"
            norm(f"{block}.norm1", width)
            norm(f"{block}.norm2", width)
            linear(f"{block}.attn.qkv", 3 * width, width)
            linear(f"{block}.attn.proj", width, width)
            linear(f"{block}.mlp.fc1", 4 * width, width)
            linear(f"{block}.mlp.fc2", width, 4 * width)
    net = "diffloss.net"
    linear(f"{net}.time_embed.mlp.0", head, 256)
    linear(f"{net}.time_embed.mlp.2", head, head)
    linear(f"{net}.cond_embed", head, width)
    linear(f"{net}.input_proj", head, channels)
    for i in range(head_depth):
        norm(f"{net}.res_blocks.{i}.in_ln", head)
        linear(f"{net}.res_blocks.{i}.mlp.0", head, head)
        linear(f"{net}.res_blocks.{i}.mlp.2", head, head)
        linear(f"{net}.res_blocks.{i}.adaLN_modulation.1", 3 * head, head)
    linear(f"{net}.final_layer.linear", 2 * channels, head)
    linear(f"{net}.final_layer.adaLN_modulation.1", 2 * head, head)
    return {name: _values(name, shape, generator) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    drawn = torch.randn(shape, generator=generator)
    if len(shape) == 2 and name.endswith(".weight") and "class_emb" not in name:
        return drawn * shape[1] ** -0.5
    return drawn * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def lin(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    x = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    return x if weight is None else x * weight + bias


def named_norm(state: State, name: str, x: Tensor) -> Tensor:
    return layer_norm(x, state[f"{name}.weight"], state[f"{name}.bias"])


def block(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    """A pre-norm vision transformer block on (n, D)."""
    q, k, v = lin(state, f"{name}.attn.qkv", named_norm(state, f"{name}.norm1", x)).chunk(3, -1)
    size = x.shape[1] // heads
    mixed = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        mixed.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), -1) @ v[:, part])
    x = x + lin(state, f"{name}.attn.proj", torch.cat(mixed, -1))
    hidden = lin(state, f"{name}.mlp.fc1", named_norm(state, f"{name}.norm2", x))
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + lin(state, f"{name}.mlp.fc2", hidden)


def conditioning(state: State, tokens: Tensor, known: list[bool], label: int | None, heads: int) -> Tensor:
    """(N, C) tokens of one image -> z (N, D)."""
    name = state["fake_latent"][0] if label is None else state["class_emb.weight"][label]
    buffer = state["encoder_pos_embed_learned"].shape[1] - len(tokens)
    everything = torch.cat([name.expand(buffer, -1), lin(state, "z_proj", tokens)])
    everything = named_norm(state, "z_proj_ln", everything + state["encoder_pos_embed_learned"][0])
    kept = [*range(buffer), *(buffer + i for i, there in enumerate(known) if there)]
    x = everything[kept]
    depth = sum(key.endswith("norm1.weight") and key.startswith("encoder") for key in state)
    for i in range(depth):
        x = block(state, f"encoder_blocks.{i}", x, heads)
    x = lin(state, "decoder_embed", named_norm(state, "encoder_norm", x))
    full = state["mask_token"][0, 0].repeat(len(everything), 1)
    full[kept] = x
    full = full + state["decoder_pos_embed_learned"][0]
    for i in range(depth):
        full = block(state, f"decoder_blocks.{i}", full, heads)
    return named_norm(state, "decoder_norm", full)[buffer:] + state["diffusion_pos_embed_learned"][0]


def head(state: State, x: Tensor, t: int, z: Tensor) -> Tensor:
    """(m, C) noisy tokens at original timestep t, (m, D) -> (m, 2C)."""
    net = "diffloss.net"
    angle = t * torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
    time = torch.cat([angle.cos(), angle.sin()])
    time = lin(state, f"{net}.time_embed.mlp.2", F.silu(lin(state, f"{net}.time_embed.mlp.0", time)))
    y = F.silu(time + lin(state, f"{net}.cond_embed", z))
    x = lin(state, f"{net}.input_proj", x)
    depth = sum(key.endswith("in_ln.weight") for key in state)
    for i in range(depth):
        name = f"{net}.res_blocks.{i}"
        shift, scale, gate = lin(state, f"{name}.adaLN_modulation.1", y).chunk(3, -1)
        h = named_norm(state, f"{name}.in_ln", x) * (1 + scale) + shift
        x = x + gate * lin(state, f"{name}.mlp.2", F.silu(lin(state, f"{name}.mlp.0", h)))
    shift, scale = lin(state, f"{net}.final_layer.adaLN_modulation.1", y).chunk(2, -1)
    return lin(state, f"{net}.final_layer.linear", layer_norm(x) * (1 + scale) + shift)


def kept_timesteps(count: int) -> list[int]:
    """The respacing rule for one section: a stride summed in floating point, each sum rounded."""
    place, kept = 0.0, []
    for _ in range(count):
        kept.append(round(place))
        place += 999 / (count - 1) if count > 1 else 1
    return kept


def coefficients(count: int) -> list[dict[str, float]]:
    """The factors of every sampling step, by kept timestep, ascending; plain Python floats."""
    alpha_bar, product = [], 1.0
    for i in range(1000):
        beta = 1 - _cosine((i + 1) / 1000) / _cosine(i / 1000)
        product *= 1 - min(beta, 0.999)
        alpha_bar.append(product)
    rows, before = [], 1.0
    for t in kept_timesteps(count):
        now = alpha_bar[t]
        beta = 1 - now / before
        variance = beta * (1 - before) / (1 - now)
        rows.append({
            "t": t, "a": math.sqrt(now), "b": math.sqrt(1 - now), "beta": beta, "variance": variance,
            "mean_x0": beta * math.sqrt(before) / (1 - now),
            "mean_xt": (1 - before) * math.sqrt(1 - beta) / (1 - now),
        })  # fmt: skip
        before = now
    rows[0]["variance"] = rows[1]["variance"]  # 0 there; the released code clips its logarithm to the next one
    return rows


def _cosine(share: float) -> float:
    return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2


def sample(
    state: State, label: int, order: list[int], noise: Noise, *, heads: int, steps: int, diffusion_steps: int,
    guidance: float, schedule: str, temperature: float,
) -> Tensor:  # fmt: skip
    """(N, C) tokens of one image, decoded completely. The order is walked from its end."""
    total, channels = len(order), state["z_proj.weight"].shape[1]
    tokens, masked = torch.zeros(total, channels), set(order)
    for step in range(steps):
        length = math.floor(total * math.cos(math.pi / 2 * (step + 1) / steps))
        length = max(1, min(len(masked) - 1, length))
        following = set() if step == steps - 1 else set(order[:length])
        now = sorted(masked - following)
        scale = guidance if schedule == "constant" else 1 + (guidance - 1) * (total - length) / total
        known = [i not in masked for i in range(total)]
        z = conditioning(state, tokens, known, label, heads)[now]
        z_null = conditioning(state, tokens, known, None, heads)[now]
        tokens[now] = _sample_tokens(state, z, z_null, now, noise, coefficients(diffusion_steps), scale, temperature)
        masked = following
    return tokens


def _sample_tokens(
    state: State, z: Tensor, z_null: Tensor, positions: list[int], noise: Noise, chain: list[dict[str, float]],
    scale: float, temperature: float,
) -> Tensor:  # fmt: skip
    channels = state["z_proj.weight"].shape[1]
    x = torch.stack([noise(p, 1000) for p in positions])
    for index in reversed(range(len(chain))):
        c = chain[index]
        t = int(c["t"])
        out = head(state, x, t, z)
        eps, raw = out[:, :channels], out[:, channels:]  # the variance is the conditional one, unguided
        if scale != 1:
            null = head(state, x, t, z_null)[:, :channels]
            eps = null + scale * (eps - null)
        x0 = x / c["a"] - eps * math.sqrt(1 / c["a"] ** 2 - 1)
        mean = c["mean_x0"] * x0 + c["mean_xt"] * x
        if index == 0:
            return mean
        share = (raw + 1) / 2
        log_variance = share * math.log(c["beta"]) + (1 - share) * math.log(c["variance"])
        step_noise = torch.stack([noise(p, t) for p in positions])
        x = mean + temperature * torch.exp(log_variance / 2) * step_noise
    raise AssertionError("a chain has at least one step")
