"""Host-side planning: all rows' parts in the next step, packed for the device.

    RowState -> RowStep        what one row does next: positions, guidance, number of diffusion steps
    RowSteps -> StepPlan       the same for all rows, one entry per token to decide

A step launches hundreds of kernels, and waiting for one of them would leave a GPU idle. So everything a step needs is
planned on the CPU and sent in four transfers, and nothing is read back.

Letters, in addition to those of model/config.py: B rows in the step, M tokens that they decide, G tokens of guided rows
among them, U guided rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fluid_kernels.head_loop import Rows
from fluid_kernels.transfers import send
from model.inference.heads.categorical import CategoricalRows, choose_confident
from model.inference.heads.chains import embed_conditions
from model.inference.row_state import RowStep
from model.networks.diffusion_head import DiffusionHead

NO_TOP_K = 1 << 31  # more than any codebook has


@dataclass(frozen=True)
class Choices:
    """The rows of a step with the order "confidence", Rc of them."""

    entries: Tensor  # (Rc, N) int64, their tokens among the packed ones
    slot: Tensor  # (Rc,) int64
    seed: Tensor  # (Rc,) int64
    count: Tensor  # (Rc,) int64, tokens to keep
    step: Tensor  # (Rc,) int64
    scale: Tensor  # (Rc,) float32

    @classmethod
    def pack(cls, steps: Sequence[RowStep], starts: Sequence[int], total: int) -> Choices | None:
        """starts: where each row's tokens begin among the packed ones. total: N."""
        rows = [(step, start, step.choice) for step, start in zip(steps, starts, strict=True) if step.choice]
        if not rows:
            return None
        integers = torch.tensor([[start, s.slot, s.seed, c.count, c.step] for s, start, c in rows])
        start, slot, seed, count, step = integers.unbind(1)
        scale = torch.tensor([choice.scale for _, _, choice in rows])
        return cls(start[:, None] + torch.arange(total), slot, seed, count, step, scale)

    def to(self, device: torch.device) -> Choices:
        """Copy to a device, without waiting for it."""
        return Choices(**{f.name: send(getattr(self, f.name), device) for f in fields(self)})


@dataclass(frozen=True)
class StepPlan:
    """One step as packed tokens, one entry per token, rows one after the other."""

    lengths: tuple[int, ...]  # the distinct numbers of diffusion steps, longest first
    chain: Tensor  # (M,) int64, index into `lengths`
    seed: Tensor  # (M,) int64, of the token's row
    slot: Tensor  # (M,) int64, the token's row in the engine's tensors
    position: Tensor  # (M,) int64, the token's place in that row, 0 to N - 1
    top_k: Tensor  # (M,) int64
    noise_step: Tensor  # (M,) int64, see CategoricalRows.step
    guidance: Tensor  # (M,) float32
    temperature: Tensor  # (M,) float32
    top_p: Tensor  # (M,) float32
    guided: Tensor  # (G,) int64, ascending: the entries that need an unconditional z too
    z_row: Tensor  # (M + G,) int64, the row of z that each entry reads, then each guided entry's unconditional one
    z_position: Tensor  # (M + G,) int64, the position in that row
    host: tuple[list[int], list[int]]  # `chain` and `guided` again, for the head's loop
    filtered: bool  # any top_k or top_p has an effect
    choices: Choices | None  # rows with the order "confidence"

    def __len__(self) -> int:
        """M."""
        return len(self.chain)

    @classmethod
    def pack(cls, steps: Sequence[RowStep], total: int) -> StepPlan:
        """Expand the values of each row to the tokens that the row samples.

        Args:
            steps: B rows, those with the most diffusion steps first, as the head's loop expects. The plan reads z
                (B + U, N, D), or (B + U, 1, D) in raster order: these rows in this order, then the unconditional halves
                of the paired ones.
            total: N.
        """
        lengths = sorted({step.diffusion_steps for step in steps}, reverse=True)
        integers = torch.tensor(
            [
                [lengths.index(s.diffusion_steps), s.seed, s.slot, NO_TOP_K if s.top_k is None else s.top_k,
                 s.choice.step if s.choice else 0]
                for s in steps
            ]
        )  # fmt: skip  # (B, 5)
        floats = torch.tensor(
            [[s.guidance, s.temperature, 1.0 if s.top_p is None else s.top_p] for s in steps], dtype=torch.float32
        )  # (B, 3)
        row_guided = torch.tensor([s.guided for s in steps])  # (B,) bool
        paired = torch.tensor([s.paired for s in steps])
        null_row = len(steps) - 1 + paired.cumsum(0)  # (B,) the unconditional row of z; for paired rows only

        counts = torch.tensor([len(s.positions) for s in steps])  # (B,)
        owner = torch.arange(len(steps)).repeat_interleave(counts)  # (M,) which of the steps a token belongs to
        position = torch.cat([s.positions for s in steps])  # (M,)
        place = torch.zeros_like(position) if steps[0].walk is not None else position
        guided = row_guided[owner].nonzero()[:, 0]  # (G,)
        chain, seed, slot, top_k, noise_step = integers[owner].unbind(1)  # (M,) each
        guidance, temperature, top_p = floats[owner].unbind(1)  # (M,) each
        return cls(
            lengths=tuple(lengths),
            chain=chain,
            seed=seed,
            slot=slot,
            position=position,
            top_k=top_k,
            noise_step=noise_step,
            guidance=guidance,
            temperature=temperature,
            top_p=top_p,
            guided=guided,
            z_row=torch.cat([owner, null_row[owner[guided]]]),
            z_position=torch.cat([place, place[guided]]),
            host=(chain.tolist(), guided.tolist()),
            filtered=any(s.top_k is not None or s.top_p is not None for s in steps),
            choices=Choices.pack(steps, (counts.cumsum(0) - counts).tolist(), total),
        )

    def to(self, device: torch.device) -> StepPlan:
        """Copy the plan to a device, in four transfers without waiting; a few more with the order "confidence"."""
        integers = torch.stack([self.chain, self.seed, self.slot, self.position, self.top_k, self.noise_step])
        chain, seed, slot, position, top_k, noise_step = send(integers, device)
        guidance, temperature, top_p = send(torch.stack([self.guidance, self.temperature, self.top_p]), device)
        z_row, z_position = send(torch.stack([self.z_row, self.z_position]), device)
        return replace(
            self, chain=chain, seed=seed, slot=slot, position=position, top_k=top_k, noise_step=noise_step,
            guidance=guidance, temperature=temperature, top_p=top_p, guided=send(self.guided, device), z_row=z_row,
            z_position=z_position, choices=None if self.choices is None else self.choices.to(device),
        )  # fmt: skip

    def head_rows(self, head: DiffusionHead, z: Tensor) -> Rows:
        """The diffusion head loop's input. z: (M + G, D), that is z[z_row, z_position]."""
        condition = embed_conditions(head, z, self.guided, self.guidance)
        return Rows(
            condition=condition, guided=self.guided, chain=self.chain, guidance=self.guidance,
            temperature=self.temperature, seed=self.seed, position=self.position, host=self.host,
        )  # fmt: skip

    def categorical_rows(self, z: Tensor) -> CategoricalRows:
        """The categorical sampler's input. z: (M + G, D), that is z[z_row, z_position]."""
        return CategoricalRows(
            z=z, guided=self.guided, guidance=self.guidance, temperature=self.temperature, top_k=self.top_k,
            top_p=self.top_p, seed=self.seed, position=self.position, step=self.noise_step, filtered=self.filtered,
        )  # fmt: skip

    def chosen(self, confidence: Tensor, known: Tensor) -> Tensor | None:
        """(M,) bool, which sampled tokens are decided; None: all, as without the order "confidence".

        Args:
            confidence: (M,) logarithms of the sampled tokens' probabilities.
            known: (R, N) bool, tokens decided before the step.
        """
        if self.choices is None:
            return None
        rows = self.choices
        picked = choose_confident(
            confidence[rows.entries], known[rows.slot], rows.seed, rows.step, rows.scale, rows.count
        )
        everything = torch.ones_like(confidence, dtype=torch.bool)
        return everything.index_put((rows.entries,), picked)
