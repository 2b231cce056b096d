"""The diffusion head: a small MLP that denoises one token, conditioned by AdaLN on the backbone's z and the timestep.

MAR (arXiv 2406.11838) section 3.2 and SimpleMLPAdaLN of its code; Fluid keeps it with 6 blocks. Per residual block

    shift, scale, gate = Linear(silu(y))           y = time_embed(t) + cond_embed(z)
    x = x + gate · Linear(silu(Linear(LN(x)·(1 + scale) + shift)))       NOVA: LN(Linear(…)), and z through an MLP

Whatever depends on t and z but not on x can be computed ahead of the sampling loop: hence the split into `embed_time`,
`embed_condition` and `denoise`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluid_kernels.head_loop import POST_LN_EPS
from model.config import ModelConfig

FREQUENCIES = 256  # channels of the sinusoidal time embedding
MAX_PERIOD = 10000.0
GUIDANCE_TIME = 50.0  # a guidance scale is embedded like a timestep this many times as large


def timestep_features(t: Tensor) -> Tensor:
    """(M,) timesteps of the 1000-step chain -> (M, 256): cosines first, then sines (as in ADM, DiT, MAR)."""
    half = FREQUENCIES // 2
    speed = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=t.device) / half)
    angle = t[:, None].float() * speed
    return torch.cat([angle.cos(), angle.sin()], -1)


class HeadBlock(nn.Module):
    """One AdaLN residual block; see the module's formula."""

    def __init__(self, width: int, post_norm: bool = False):
        """post_norm: the norm with weights is behind the MLP (NOVA), not in front of it."""
        super().__init__()
        self.norm = nn.LayerNorm(width, 1e-6, elementwise_affine=not post_norm)
        self.post_norm = nn.LayerNorm(width, POST_LN_EPS) if post_norm else nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (M, W), y = silu(time + condition) (M, W) -> (M, W)."""
        shift, scale, gate = self.modulation(y).chunk(3, -1)  # (M, W) each
        return x + gate * self.post_norm(self.mlp(self.norm(x) * (1 + scale) + shift))


class DiffusionHead(nn.Module):
    """Predicts eps and a variance, or v, of a noisy token, given its timestep and its z."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, self.config = config.head_width, config
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        if config.mean_flow:
            self.length = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
            self.guidance = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, 2 * width))
        self.condition: nn.Module = nn.Linear(config.width, width)
        if config.post_norm_head:
            self.condition = nn.Sequential(nn.Linear(config.width, width), nn.SiLU(), nn.Linear(width, width))
        self.token_in = nn.Linear(config.channels, width)
        self.blocks = nn.ModuleList(HeadBlock(width, config.post_norm_head) for _ in range(config.head_depth))
        self.final_norm = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.head_out)

    def zero_init(self) -> None:
        """Initialise as in DiT (AdaLN-Zero): identity blocks, a prediction of zero, and N(0, 0.02) in the time MLP."""
        modulations = [part.modulation for part in self.modules() if isinstance(part, HeadBlock)]
        for linear in (*modulations, self.final_modulation, self.out):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for layer in self.time:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        if self.config.mean_flow:
            for parameter in (*self.length[2].parameters(), *self.guidance[2].parameters()):
                nn.init.zeros_(parameter)

    def embed_time(self, t: Tensor, length: Tensor | None = None) -> Tensor:
        """(M,) timesteps -> (M, W). All tokens of a step may share one row.

        Args:
            length: (M,) timesteps that the step goes down; read by a head of a mean flow, 0 if not given.
        """
        embedded: Tensor = self.time(timestep_features(t))
        if self.config.mean_flow:
            embedded = embedded + self.length(timestep_features(torch.zeros_like(t) if length is None else length))
        return embedded

    def embed_condition(self, z: Tensor) -> Tensor:
        """(M, D) z -> (M, W). Once per token, for all its diffusion steps."""
        embedded: Tensor = self.condition(z)
        return embedded

    def embed_scale(self, guidance: Tensor) -> tuple[Tensor, Tensor]:
        """What a mean flow's guided token adds to its two conditions, with the prompt and without: (M,) -> (M, W) each.

        The mean of a guided velocity is no combination of the means of its two parts, so both evaluations have to know
        the scale under which they will be combined.
        """
        embedded = self.guidance(timestep_features(GUIDANCE_TIME * guidance))
        with_prompt, without = embedded.chunk(2, -1)
        return with_prompt, without

    def denoise(self, x: Tensor, y: Tensor) -> Tensor:
        """(M, C) noisy tokens and y = time + condition (M, W) -> (M, C or 2C)."""
        y = F.silu(y)
        x = self.token_in(x)  # (M, W)
        for block in self.blocks:
            x = block(x, y)
        shift, scale = self.final_modulation(y).chunk(2, -1)
        return self.out(self.final_norm(x) * (1 + scale) + shift)

    def forward(self, x: Tensor, t: Tensor, z: Tensor, length: Tensor | None = None) -> Tensor:
        """x (M, C), t (M,), z (M, D), length (M,) as `embed_time` has it -> (M, C or 2C)."""
        return self.denoise(x, self.embed_time(t, length) + self.embed_condition(z))
