"""NOVA restated as plainly as possible: one image at a time, loops, official tensor names and latents (C, H, W).

Written from descriptions of the released code, as an independent check of networks/imported/nova.py, schedules.py and
the decoding loop; it shares no code with them. `state` maps official names to tensors. `random_folder` writes a whole
published folder of small random weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]
Noise = Callable[[int, int], Tensor]  # (position, timestep or 1000 for the start) -> (16,), in the official layout

WIDTH, HEADS, HEAD_WIDTH, GRID, TEXT, TEXT_LENGTH = 32, 4, 24, 4, 16, 8
CONTEXT_DEPTH, DEPTH, HEAD_DEPTH = 2, 4, 2
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.5, "num_train_timesteps": 1000}
DDPM = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}


def random_state(seed: int = 0) -> State:
    """A small model under official names, with no tensor left at zero."""
    shapes: dict[str, tuple[int, ...]] = {
        "text_embed.weight": (512, TEXT), "mask_embed.bos_token": (1, WIDTH), "mask_embed.mask_token": (1, WIDTH),
    }  # fmt: skip

    def linear(name: str, out: int, *into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, *into), (out,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    linear("text_embed.proj", WIDTH, TEXT)
    linear("video_pos_embed.time_proj.0", WIDTH, 256)
    linear("video_pos_embed.time_proj.2", WIDTH, WIDTH)
    linear("video_encoder.patch_embed.proj", WIDTH, 4, 4, 4)
    linear("image_encoder.patch_embed.proj", WIDTH, 4, 2, 2)
    for name in ("text_embed", "video_pos_embed", "video_encoder", "image_encoder"):
        norm(f"{name}.norm", WIDTH)
    for stack, depth in (("video_encoder", CONTEXT_DEPTH), ("image_encoder", DEPTH)):
        for i in range(depth):
            block = f"{stack}.blocks.{i}"
            norm(f"{block}.norm1", WIDTH)
            norm(f"{block}.norm2", WIDTH)
            linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
            linear(f"{block}.attn.proj", WIDTH, WIDTH)
            linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
            linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    head = "image_decoder"
    linear(f"{head}.patch_embed.proj", HEAD_WIDTH, 4, 2, 2)
    for part, into in (("timestep_proj", 256), ("condition_proj", WIDTH)):
        linear(f"{head}.time_cond_embed.{part}.fc1", HEAD_WIDTH, into)
        linear(f"{head}.time_cond_embed.{part}.fc2", HEAD_WIDTH, HEAD_WIDTH)
    for i in range(HEAD_DEPTH):
        linear(f"{head}.blocks.{i}.norm1.proj", 3 * HEAD_WIDTH, HEAD_WIDTH)
        linear(f"{head}.blocks.{i}.proj.fc1", HEAD_WIDTH, HEAD_WIDTH)
        linear(f"{head}.blocks.{i}.proj.fc2", HEAD_WIDTH, HEAD_WIDTH)
        norm(f"{head}.blocks.{i}.norm2", HEAD_WIDTH)
    linear(f"{head}.norm.proj", 2 * HEAD_WIDTH, HEAD_WIDTH)
    linear(f"{head}.head", 16, HEAD_WIDTH)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        into = math.prod(shape[1:]) if len(shape) > 1 else 1
        state[name] = torch.randn(shape, generator=generator) * (into**-0.5 if len(shape) > 1 else 0.2)
        if name.endswith(".weight") and len(shape) == 1:
            state[name] += 1
    return state


def random_folder(folder: Path, scheduler: dict[str, Any], state: State | None = None, grid: int = GRID) -> Path:
    """A published folder with small random weights: an image of grid² tokens of 16 × 16 pixels, a Phi of one layer."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

    def write(name: str, content: dict[str, Any]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))

    torch.manual_seed(0)
    write("model_index.json", {"_class_name": "NOVAPipeline"})
    write("scheduler/scheduler_config.json", scheduler)
    write("transformer/config.json", {
        "_class_name": "NOVATransformer3DModel", "image_dim": 4, "image_size": [16 * grid] * 2, "image_stride": 8,
        "text_token_dim": TEXT, "text_token_len": TEXT_LENGTH, "image_base_size": [grid] * 2,
        "video_base_size": [1, grid // 2, grid // 2], "video_mixer_rank": None, "rotary_pos_embed": False,
        "arch": ["vit_d16w1024", "vit_d32w1024", "mlp_d6w1024"],
    })  # fmt: skip
    save_file(state or random_state(), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    AutoencoderKL(
        block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    phi = PhiConfig(
        vocab_size=32, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    PhiForCausalLM(phi).save_pretrained(folder / "text_encoder")
    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1, "red": 2, "apple": 3, "blue": 4}, "<|endoftext|>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>").save_pretrained(folder / "tokenizer")
    return folder


def lin(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].flatten(1).T + state[f"{name}.bias"]


def mlp(state: State, name: str, x: Tensor) -> Tensor:
    return lin(state, f"{name}.fc2", F.silu(lin(state, f"{name}.fc1", x)))


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return unit(x, 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def unit(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def block(state: State, name: str, x: Tensor) -> Tensor:
    """(n, D): attention head by head; both norms are behind their layer."""
    parts = []
    for q, k, v in zip(
        *(part.chunk(HEADS, -1) for part in lin(state, f"{name}.attn.qkv", x).chunk(3, -1)), strict=True
    ):
        parts.append((q @ k.T / math.sqrt(q.shape[1])).softmax(-1) @ v)
    x = x + norm(state, f"{name}.norm1", lin(state, f"{name}.attn.proj", torch.cat(parts, -1)))
    hidden = F.gelu(lin(state, f"{name}.mlp.fc1", x))
    return x + norm(state, f"{name}.norm2", lin(state, f"{name}.mlp.fc2", hidden))


def place(grid: int, position: int) -> Tensor:
    """(D,) of a position: column first."""
    vector = []
    for coordinate in (position % grid, position // grid):
        angles = [coordinate * 10000 ** (-k / (WIDTH / 4)) for k in range(WIDTH // 4)]
        vector += [*map(math.sin, angles), *map(math.cos, angles)]
    return torch.tensor(vector)


def context(state: State, states: Tensor) -> Tensor:
    """(L, E) text states, L from 0 on -> (N/4, D)."""
    text = torch.cat([states, state["text_embed.weight"][len(states) : TEXT_LENGTH]])
    text = norm(state, "text_embed.norm", lin(state, "text_embed.proj", text))
    frame = torch.tensor([0.0] * 128 + [1.0] * 128)
    frame = F.silu(lin(state, "video_pos_embed.time_proj.0", frame))
    frame = norm(state, "video_pos_embed.norm", lin(state, "video_pos_embed.time_proj.2", frame))
    count = (GRID // 2) ** 2
    start = [state["mask_embed.bos_token"][0] + frame + place(GRID // 2, i) for i in range(count)]
    x = torch.cat([text, torch.stack(start)])
    for i in range(CONTEXT_DEPTH):
        x = block(state, f"video_encoder.blocks.{i}", x)
    return norm(state, "video_encoder.norm", x[-count:])


def conditioning(state: State, tokens: Tensor, known: list[int], ctx: Tensor) -> Tensor:
    """(N, D) z. tokens: (N, 16) in the official layout, (row, column, channel)."""
    kernel = state["image_encoder.patch_embed.proj.weight"]  # (D, 4, 2, 2)
    embedded = tokens @ kernel.permute(0, 2, 3, 1).flatten(1).T + state["image_encoder.patch_embed.proj.bias"]
    x = torch.stack([*ctx, *(embedded[i] + place(GRID, i) for i in known)])
    for i in range(DEPTH // 2):
        x = block(state, f"image_encoder.blocks.{i}", x)
    room = len(ctx)
    everything = [state["mask_embed.mask_token"][0] + place(GRID, i) for i in range(GRID**2)]
    for slot, i in enumerate(known):
        everything[i] = x[room + slot]
    x = torch.stack([*x[:room], *everything])
    for i in range(DEPTH // 2, DEPTH):
        x = block(state, f"image_encoder.blocks.{i}", x)
    return norm(state, "image_encoder.norm", x[room:])


def head(state: State, x: Tensor, t: float, z: Tensor) -> Tensor:
    """(m, 16) noisy tokens in the official layout at time t of 0 to 1000, (m, D) -> (m, 16)."""
    net = "image_decoder"
    angle = t * torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
    time = mlp(state, f"{net}.time_cond_embed.timestep_proj", torch.cat([angle.cos(), angle.sin()]))
    y = F.silu(time + mlp(state, f"{net}.time_cond_embed.condition_proj", z))
    kernel = state[f"{net}.patch_embed.proj.weight"]
    u = x @ kernel.permute(0, 2, 3, 1).flatten(1).T + state[f"{net}.patch_embed.proj.bias"]
    for i in range(HEAD_DEPTH):
        scale, shift, gate = lin(state, f"{net}.blocks.{i}.norm1.proj", y).chunk(3, -1)
        h = unit(u, 1e-6) * (1 + scale) + shift
        u = u + gate * norm(state, f"{net}.blocks.{i}.norm2", mlp(state, f"{net}.blocks.{i}.proj", h))
    scale, shift = lin(state, f"{net}.norm.proj", y).chunk(2, -1)
    return lin(state, f"{net}.head", unit(u, 1e-6) * (1 + scale) + shift)


def flow_times(count: int, shift: float) -> list[float]:
    """Descending from 1, with 0 behind the last: shifted when the range is found, and once more."""
    lowest = shift * 0.001 / (1 + (shift - 1) * 0.001)
    spaced = [1 + (lowest - 1) * i / max(count - 1, 1) for i in range(count)]
    return [shift * t / (1 + (shift - 1) * t) for t in spaced] + [0.0]


def sample(
    state: State, ctx: Tensor, null: Tensor, decided: list[list[int]], noise: Noise, *, diffusion_steps: int,
    guidance: float, scheduler: dict[str, Any],
) -> Tensor:  # fmt: skip
    """(N, 16) tokens of one image in the official layout. decided: positions of each step."""
    tokens, known = torch.zeros(GRID**2, 16), list[int]()
    for now in decided:
        z, z_null = (conditioning(state, tokens, known, c)[now] for c in (ctx, null))
        x = torch.stack([noise(p, 1000) for p in now])

        def out(t: float, x: Tensor, z: Tensor = z, z_null: Tensor = z_null) -> Tensor:
            without = head(state, x, t, z_null)
            return without + guidance * (head(state, x, t, z) - without)

        if scheduler is FLOW:
            times = flow_times(diffusion_steps, scheduler["shift"])
            for t, following in pairwise(times):
                x = x + (following - t) * out(1000 * t, x)
        else:
            x = _ddpm(x, out, diffusion_steps, lambda t, now=now: torch.stack([noise(p, t) for p in now]))
        tokens[now] = x
        known += now
    return tokens


def _ddpm(x: Tensor, out: Callable[[float, Tensor], Tensor], count: int, noise: Callable[[int], Tensor]) -> Tensor:
    """Leading timesteps, eps, the posterior's variance, never clipped."""
    alpha_bar, product = [], 1.0
    for i in range(1000):
        now, following = (math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (i, i + 1))
        product *= 1 - min(1 - following / now, 0.999)
        alpha_bar.append(product)
    stride = 1000 // count
    for t in reversed(range(0, stride * count, stride)):
        now, before = alpha_bar[t], alpha_bar[t - stride] if t >= stride else 1.0
        beta = 1 - now / before
        x0 = (x - math.sqrt(1 - now) * out(t, x)) / math.sqrt(now)
        x = math.sqrt(before) * beta / (1 - now) * x0 + math.sqrt(now / before) * (1 - before) / (1 - now) * x
        if t:
            x = x + math.sqrt((1 - before) / (1 - now) * beta) * noise(t)
    return x
