"""The sampling loop in plain torch, arranged for a CPU: modulation hoisted, weights packed, few elementwise passes.

Modulation is 3·L + 2 of the head's 5·L + 2 square products, and depends on (t, z) but not on x. In the loop it would be
a product of few rows, whose time goes into reading weights; ahead of it, steps × rows share one product of a few
hundred rows at full speed. The rest of the loop reads 2·L·W² weights a step instead of 5·L·W².
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fluid_kernels.head_loop import (
    LN_EPS,
    POST_LN_EPS,
    Chains,
    HeadWeights,
    Rows,
    active,
    evaluate_ref,
    facts,
    guide,
    initial_noise,
    step_noise,
    update,
)  # fmt: skip
from fluid_kernels.ops.linear import PackedLinear, in_one_order

# Rows of a hoisted product: enough for full speed, few enough that its result (rows · (3L + 2)·W · 2 bytes, 10 MiB at
# MAR-B's head) is still in a cache when the steps read it. A step with that many rows of its own computes each block's
# modulation just before the block, where it stays in the caches (docs/log.md).
HOISTED_ROWS = 256
# Normal numbers drawn at once: Philox is a hundred small operations, cheap only when batched.
NOISE_VALUES = 65536


class TorchHead:
    """A head's weights, packed once; call it to run the loop.

    dtype: of the matrix products, bfloat16 or float32; sums, statistics and the update are float32.
    """

    def __init__(self, weights: HeadWeights, dtype: torch.dtype):
        width, self.weights = weights.width, weights
        self.width, self.depth, self.channels, self.dtype = width, weights.depth, weights.channels, dtype
        self.token_in = partial(F.linear, weight=weights.token_in.float(), bias=weights.token_in_bias.float())
        self.norm = list(zip(weights.norm_weight.float(), weights.norm_bias.float(), strict=True))
        self.post: list[tuple[Tensor, Tensor]] | None = None
        if weights.post_weight is not None and weights.post_bias is not None:
            self.post = list(zip(weights.post_weight.float(), weights.post_bias.float(), strict=True))
        self.out = partial(F.linear, weight=weights.out.float(), bias=weights.out_bias.float())
        self.up = [
            PackedLinear(w, b, dtype, "silu") for w, b in zip(weights.up, weights.up_bias, strict=True)
        ]  # fmt: skip
        self.down = [PackedLinear(w, b, dtype) for w, b in zip(weights.down, weights.down_bias, strict=True)]
        self.modulation = [
            PackedLinear(w, _plus_one(b, width), dtype)
            for w, b in zip(
                (*weights.modulation, weights.final_modulation),
                (*weights.modulation_bias, weights.final_modulation_bias),
                strict=True,
            )
        ]

    def __call__(self, rows: Rows, chains: Chains, prediction: str, clamp: float) -> Tensor:
        """(M, C) float32 tokens; see head_loop.py.

        Raises:
            ValueError: the rows are not sorted.
        """
        known = facts(rows, chains)
        plan = active(known)
        x = initial_noise(rows, chains, self.channels)
        coefficients = chains.coefficients[rows.chain]  # (M, K, 7)
        sharp = self.dtype != torch.float32 and (prediction == "eps" or known.eps_as_v)
        noise = _Noise(rows, chains, plan, self.channels)
        stop = len(plan)
        while stop:
            start = self._chunk(plan, stop)
            modulation = self._modulate(rows, chains, plan, start, stop)
            for j in reversed(range(start, stop)):
                count, guided = plan[j]
                both = torch.cat([x[:count], x[rows.guided[:guided]]]) if guided else x[:count]
                out = self._evaluate(both, modulation(j))
                if sharp:
                    self._sharpen(out, both, rows, chains, j, plan, known.magnifies)
                out = guide(out, rows, count, guided, self.channels)
                x[:count] = update(
                    out, x[:count], coefficients[:count, j], noise.at(j), rows.temperature[:count], prediction, clamp
                )
            stop = start
        return x

    def buckets(self, most: int) -> list[tuple[int, int]]:
        """None: any number of rows runs as it is."""
        return []

    @staticmethod
    def _chunk(plan: list[tuple[int, int]], stop: int) -> int:
        """The first index of the steps that share one hoisted product with `stop` − 1; at least that one step."""
        start, total = stop - 1, sum(plan[stop - 1])
        while start and total + sum(plan[start - 1]) <= HOISTED_ROWS:
            start -= 1
            total += sum(plan[start])
        return start

    def _modulate(
        self, rows: Rows, chains: Chains, plan: list[tuple[int, int]], start: int, stop: int
    ) -> Callable[[int], Callable[[int], Tensor]]:
        """Modulation of steps start … stop − 1 as a function of the step, then of the block: (m + g, 3W), (m + g, 2W)
        for the final layer. Hoisted if several steps share a product, computed when read if there is only one."""
        own = torch.arange(len(rows), device=rows.chain.device)
        slots: list[Tensor] = []
        row_of: list[Tensor] = []
        step_of: list[Tensor] = []
        first: dict[int, int] = {}
        for j in range(start, stop):
            count, guided = plan[j]
            first[j] = sum(len(part) for part in row_of)
            slots += [own[:count], len(rows) + own[:guided]]
            row_of += [own[:count], rows.guided[:guided]]
            step_of.append(torch.full((count + guided,), j, device=own.device))
        time = chains.times[rows.chain[torch.cat(row_of)], torch.cat(step_of)]
        y = F.silu(time + rows.condition[torch.cat(slots)]).to(self.dtype)  # (Σ (m + g), W)
        if stop - start == 1:
            return lambda j: lambda block: self.modulation[block](y)
        hoisted = [product(y) for product in self.modulation]
        return lambda j: lambda block: hoisted[block][first[j] : first[j] + sum(plan[j])]

    def _sharpen(
        self, out: Tensor, x: Tensor, rows: Rows, chains: Chains, j: int, plan: list[tuple[int, int]],
        magnifies: list[bool],
    ) -> None:  # fmt: skip
        """Recompute in float32 the outputs of rows whose chain starts at j, where that step magnifies errors."""
        (count, guided), (old, old_guided) = plan[j], plan[j + 1] if j + 1 < len(plan) else (0, 0)
        if count == old or not magnifies[count - 1]:  # rows that start here share a chain
            return
        own, half = torch.arange(old, count, device=x.device), torch.arange(old_guided, guided, device=x.device)
        chain = rows.chain[torch.cat([own, rows.guided[half]])]
        y = F.silu(chains.times[chain, j] + rows.condition[torch.cat([own, len(rows) + half])])
        place = torch.cat([own, count + half])
        inputs = torch.cat([x[place], y], 1)
        out[place] = in_one_order(
            lambda both: evaluate_ref(self.weights, *both.split([x.shape[1], self.width], 1)), inputs
        )

    def _evaluate(self, x: Tensor, modulation: Callable[[int], Tensor]) -> Tensor:
        """(m + g, C) noisy tokens -> (m + g, O)."""
        width = self.width
        h = in_one_order(self.token_in, x)  # (m + g, W), float32 from here to the end
        for i in range(self.depth):
            shift, scale, gate = modulation(i).split(width, 1)
            # Each operation would cast mixed dtypes again: one cast here, and bfloat16 from it to the sum.
            n = F.layer_norm(h, (width,), *self.norm[i], LN_EPS).to(self.dtype)
            torch.addcmul(shift, n, scale, out=n)
            n = self.down[i](self.up[i](n))
            if self.post is not None:
                n = F.layer_norm(n.float(), (width,), *self.post[i], POST_LN_EPS)
            h.add_(n.mul_(gate))
        shift, scale = modulation(self.depth).split(width, 1)
        return in_one_order(self.out, torch.addcmul(shift, F.layer_norm(h, (width,), eps=LN_EPS), scale))


class _Noise:
    """Step noise, drawn for several steps at a time, from the last index down."""

    def __init__(self, rows: Rows, chains: Chains, plan: list[tuple[int, int]], channels: int):
        self.rows, self.plan, self.channels = rows, plan, channels
        self.timesteps = chains.timesteps[rows.chain]  # (M, K)
        self.start = len(plan)

    def at(self, j: int) -> Tensor:
        """(m, C) noise of the step at index j; indices must be requested in descending order."""
        if j < self.start:
            self.stop, most = self.start, self.plan[0][0]
            self.start = max(0, self.stop - max(1, NOISE_VALUES // (most * self.channels)))
            count = self.plan[self.start][0]
            self.drawn = step_noise(self.rows, self.timesteps[:count, self.start : self.stop], self.channels)
        return self.drawn[: self.plan[j][0], j - self.start]


def _plus_one(bias: Tensor, width: int) -> Tensor:
    """A modulation's bias with 1 added to its second part, so that the product yields 1 + scale."""
    bias = bias.float().clone()
    bias[width : 2 * width] += 1
    return bias
