"""The diffusion head's sampling loop over packed tokens: its inputs and its plain definition.

    for j = K-1 … 0, for the rows whose chain has more than j steps (always a prefix of the rows):
        y    = silu(time[chain, j] + condition)
        out  = head(x, y) for each row and, on the same x, for each guided row's unconditional condition
        out  = uncond + g · (cond − uncond)    on the first C outputs; a learned variance is the conditional one
        x    = mean_x0 · x0(out, x) + mean_xt · x + temperature · σ · noise                  no noise at j = 0

x starts as noise, times the temperature if the chains are a flow's, whose steps add none (σ = 0).
Rows with fewer steps join later, and all rows end together. x and all of the update are float32.

Sources: MAR (arXiv 2406.11838) for head and guidance, Ho et al. 2020 for the posterior, Nichol & Dhariwal 2021 for the
learned variance; Philox noise as in philox.py. Letters: M rows, G guided ones, W width, L blocks, C channels,
O outputs (C, or 2C with a learned variance), S chains, K steps of the longest chain.

FLOPs of a step: 2·(M + G)·W·(5·L·W + 2·W + C + O), of which (3·L + 2)·W² is modulation, which does not depend on x.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluid_kernels.philox import INITIAL, STEP, normal_ref
from fluid_kernels.transfers import send

TRAIN_STEPS = 1000  # T, the chain that was trained; the noise that sampling starts from is that of "timestep" T
LN_EPS = 1e-6
POST_LN_EPS = 1e-5  # of the norm behind a block's MLP, in heads that have one (NOVA)
# x0 = (x − √(1 − ᾱ)·eps)/√ᾱ divides by 5e-5 at the first step of a chain, which magnifies bfloat16's rounding of eps
# there 316 times. Steps that would magnify an error more than this are computed in float32.
MAGNIFIED = 8.0


@dataclass(frozen=True)
class HeadWeights:
    """The head's tensors, (out, in) as torch.nn.Linear stores them; L blocks stacked along the first dimension."""

    token_in: Tensor  # (W, C)
    token_in_bias: Tensor  # (W,)
    norm_weight: Tensor  # (L, W)
    norm_bias: Tensor  # (L, W)
    up: Tensor  # (L, W, W)
    up_bias: Tensor  # (L, W)
    down: Tensor  # (L, W, W)
    down_bias: Tensor  # (L, W)
    modulation: Tensor  # (L, 3W, W): shift, scale, gate
    modulation_bias: Tensor  # (L, 3W)
    final_modulation: Tensor  # (2W, W): shift, scale
    final_modulation_bias: Tensor  # (2W,)
    out: Tensor  # (O, W)
    out_bias: Tensor  # (O,)
    post_weight: Tensor | None = None  # (L, W) of the norm behind the MLP; None: there is none
    post_bias: Tensor | None = None  # (L, W)

    @classmethod
    def from_head(cls, head: nn.Module, dtype: torch.dtype = torch.float32) -> HeadWeights:
        """Read a module whose parts are named as in model/networks/diffusion_head.py."""
        state = {name: value.detach().to(dtype) for name, value in head.state_dict().items()}
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))

        def stacked(name: str) -> Tensor:
            return torch.stack([state[f"blocks.{i}.{name}"] for i in range(depth)])

        post = "blocks.0.post_norm.weight" in state
        if post:  # the norm in front of the MLP has no weights then
            for i in range(depth):
                state[f"blocks.{i}.norm.weight"] = torch.ones_like(state["token_in.bias"])
                state[f"blocks.{i}.norm.bias"] = torch.zeros_like(state["token_in.bias"])
        return cls(
            token_in=state["token_in.weight"], token_in_bias=state["token_in.bias"],
            norm_weight=stacked("norm.weight"), norm_bias=stacked("norm.bias"),
            up=stacked("mlp.0.weight"), up_bias=stacked("mlp.0.bias"),
            down=stacked("mlp.2.weight"), down_bias=stacked("mlp.2.bias"),
            modulation=stacked("modulation.weight"), modulation_bias=stacked("modulation.bias"),
            final_modulation=state["final_modulation.weight"], final_modulation_bias=state["final_modulation.bias"],
            out=state["out.weight"], out_bias=state["out.bias"],
            post_weight=stacked("post_norm.weight") if post else None,
            post_bias=stacked("post_norm.bias") if post else None,
        )  # fmt: skip

    @property
    def depth(self) -> int:
        """L, residual blocks."""
        return len(self.up)

    @property
    def width(self) -> int:
        """W, width of the residual stream."""
        return self.up.shape[1]

    @property
    def channels(self) -> int:
        """C, channels of a token."""
        return self.token_in.shape[1]


@dataclass(frozen=True)
class ChainFacts:
    """Properties of one chain on which launches depend."""

    steps: int
    magnifies: bool  # its first step magnifies errors of an eps prediction more than MAGNIFIED times
    eps_as_v: bool = False  # an eps prediction whose division is in the tables of the rule for "v", so a > 1

    @classmethod
    def of(cls, steps: int, coefficients: Tensor) -> ChainFacts:
        """coefficients: (K, 7) of the chain, on the host."""
        a, b, mean_x0 = coefficients[steps - 1, :3].tolist()
        return cls(steps, mean_x0 * b / min(a, 1.0) >= MAGNIFIED, a > 1)


@dataclass(frozen=True)
class RowFacts:
    """What launches depend on, as lists: properties of the M rows, and which are guided."""

    steps: list[int]  # of each row's chain, descending
    magnifies: list[bool]
    eps_as_v: bool
    guided: list[int]  # Rows.guided


@dataclass(frozen=True)
class Chains:
    """S step schedules, padded to the longest, K. Index 0 is a chain's last step, where no noise is added."""

    steps: Tensor  # (S,) int64
    timesteps: Tensor  # (S, K) int64, of the trained chain, 0 to T - 1
    times: Tensor  # (S, K, W) time embeddings
    coefficients: Tensor  # (S, K, 7) float32: see COEFFICIENTS
    host: tuple[ChainFacts, ...] | None = None  # of each chain, for a host that must not wait for the device
    flow: bool = False  # no step adds noise, so that temperature scales the initial noise instead

    def to(self, device: torch.device | str) -> Chains:
        """Copy the tables to a device, without waiting for it."""
        names = (f.name for f in fields(self) if f.name not in ("host", "flow"))
        tables: dict[str, Any] = {name: send(getattr(self, name), torch.device(device)) for name in names}
        return replace(self, **tables)


# The last dimension of Chains.coefficients; the last one is 1 where noise is added and 0 at index 0.
COEFFICIENTS = ("sqrt_alpha_bar", "sqrt_one_minus", "mean_x0", "mean_xt", "log_variance", "log_beta", "noisy")


@dataclass(frozen=True)
class Rows:
    """M tokens to sample, those with the most diffusion steps first."""

    condition: Tensor  # (M + G, W) embedded z of each row, then the unconditional ones of the guided rows
    guided: Tensor  # (G,) int64, ascending: rows with guidance
    chain: Tensor  # (M,) int64, the row's entry in Chains
    guidance: Tensor  # (M,) float32 scale; read for guided rows only
    temperature: Tensor  # (M,) float32, scales the noise of the steps (as in MAR); of a flow, the initial noise
    seed: Tensor  # (M,) int64
    position: Tensor  # (M,) int64, the token's place in its image, for the noise
    host: tuple[list[int], list[int]] | None = None  # `chain` and `guided`, for a host that must not wait

    def __len__(self) -> int:
        return len(self.chain)


def initial_noise(rows: Rows, chains: Chains, channels: int) -> Tensor:
    """(M, C) noise that the chains start from."""
    unit = normal_ref(rows.seed, INITIAL, rows.position, torch.full_like(rows.seed, TRAIN_STEPS), channels)
    return tempered(unit, rows, chains)


def tempered(unit: Tensor, rows: Rows, chains: Chains) -> Tensor:
    """(M, C) unit noise -> what the chains start from: the noise itself or, of a flow, temperature times it.

    A flow draws no other noise. From a temperature below 1 on, its paths begin nearer to the mean of the noise and end
    nearer to the modes of the data, which is what truncation does for a GAN (Brock et al. 2019, arXiv 1809.11096).
    """
    return unit * rows.temperature[:, None] if chains.flow else unit


def step_noise(rows: Rows, timesteps: Tensor, channels: int) -> Tensor:
    """(m, k) timesteps of the first m rows -> (m, k, C) unit noise."""
    count = len(timesteps)
    return normal_ref(rows.seed[:count, None], STEP, rows.position[:count, None], timesteps, channels)


def facts(rows: Rows, chains: Chains) -> RowFacts:
    """What launches depend on. Waits for the device unless rows and chains bring what the host knows.

    Raises:
        ValueError: the rows are not sorted.
    """
    chain, guided = rows.host or (rows.chain.tolist(), rows.guided.tolist())
    known = chains.host
    if known is None:
        tables = chains.coefficients.cpu()
        known = tuple(ChainFacts.of(*each) for each in zip(chains.steps.tolist(), tables, strict=True))
    found = RowFacts([known[i].steps for i in chain], [known[i].magnifies for i in chain], known[0].eps_as_v, guided)
    if any(a < b for a, b in pairwise(found.steps)) or any(a >= b for a, b in pairwise(guided)):
        raise ValueError("rows must come with the most steps first, and guided rows ascending")
    return found


def active(rows: RowFacts) -> list[tuple[int, int]]:
    """(m, g) at each index: the number of rows that take part, and how many of them are guided."""
    counts = [bisect_left(rows.steps, -j, key=int.__neg__) for j in range(rows.steps[0])]
    return [(count, bisect_left(rows.guided, count)) for count in counts]


def guide(out: Tensor, rows: Rows, count: int, guided: int, channels: int) -> Tensor:
    """(m + g, O) -> (m, O): classifier-free guidance on the first C outputs of guided rows, in place."""
    if not guided:
        return out
    which = rows.guided[:guided]
    uncond = out[count:, :channels]
    moved = uncond + rows.guidance[which, None] * (out[which, :channels] - uncond)
    out[which, :channels] = moved
    return out[:count]


def update(
    out: Tensor, x: Tensor, coefficients: Tensor, noise: Tensor, temperature: Tensor, prediction: str, clamp: float
) -> Tensor:
    """x_t -> x_{t−1}: (m, O), (m, C), (m, 7), (m, C), (m,) -> (m, C), all float32. clamp: limit on |x0|, 0 for none."""
    a, b, mean_x0, mean_xt, low, high, noisy = coefficients[..., None].unbind(-2)  # (m, 1) each
    channels = x.shape[1]
    main = out[:, :channels]
    if prediction == "eps":
        x0 = (x - b * main) / a
        share = (out[:, channels:] + 1) / 2
        log_variance = share * high + (1 - share) * low
    else:
        x0, log_variance = a * x - b * main, low
    if clamp:
        x0 = x0.clamp(-clamp, clamp)
    sigma = noisy * temperature[:, None] * torch.exp(0.5 * log_variance)
    return mean_x0 * x0 + mean_xt * x + sigma * noise


def evaluate_ref(w: HeadWeights, x: Tensor, y: Tensor) -> Tensor:
    """The head network: (m, C) noisy tokens, (m, W) silu(time + condition) -> (m, O)."""
    h = F.linear(x, w.token_in, w.token_in_bias)
    for i in range(w.depth):
        shift, scale, gate = F.linear(y, w.modulation[i], w.modulation_bias[i]).chunk(3, -1)
        n = F.layer_norm(h, (w.width,), w.norm_weight[i], w.norm_bias[i], LN_EPS) * (1 + scale) + shift
        n = F.linear(F.silu(F.linear(n, w.up[i], w.up_bias[i])), w.down[i], w.down_bias[i])
        if w.post_weight is not None and w.post_bias is not None:
            n = F.layer_norm(n, (w.width,), w.post_weight[i], w.post_bias[i], POST_LN_EPS)
        h = h + gate * n
    shift, scale = F.linear(y, w.final_modulation, w.final_modulation_bias).chunk(2, -1)
    return F.linear(F.layer_norm(h, (w.width,), eps=LN_EPS) * (1 + scale) + shift, w.out, w.out_bias)


def head_loop_ref(weights: HeadWeights, rows: Rows, chains: Chains, prediction: str, clamp: float) -> Tensor:
    """The definition, (M, C) float32 tokens: nothing hoisted, nothing packed."""
    channels = weights.channels
    x = initial_noise(rows, chains, channels).to(weights.up.dtype)
    plan = active(facts(rows, chains))
    for j in reversed(range(len(plan))):
        count, guided = plan[j]
        which = torch.cat(
            [torch.arange(count, device=x.device), rows.guided[:guided]]
        )  # the row behind each evaluation
        slot = torch.cat([which[:count], len(rows) + torch.arange(guided, device=x.device)])  # its condition
        y = F.silu(chains.times[rows.chain[which], j] + rows.condition[slot])  # (m + g, W)
        out = guide(evaluate_ref(weights, x[which], y), rows, count, guided, channels)
        chain = rows.chain[:count]
        noise = step_noise(rows, chains.timesteps[chain, j][:, None], channels)[:, 0].to(x.dtype)
        x[:count] = update(
            out, x[:count], chains.coefficients[chain, j], noise, rows.temperature[:count], prediction, clamp
        )
    return x.float()
