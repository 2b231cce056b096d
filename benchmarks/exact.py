"""Exact sampling at the shape of MAR-B: seconds per image of our engine against the method of the released code.

MAR-B: 12 + 12 blocks of 768, head 6 x 1024, 256 tokens, 64 autoregressive steps x 100 diffusion steps, guidance on.
All sides have the same random weights, at batch 1 and 8. Nothing is approximated: the sides differ only in precision,
reuse and packing.

    eager      float32, batch doubled for guidance, every product in every step: the method of the released code
    official   the released code itself, with --mar-repo PATH (a clone of LTH14/mar; needs timm and scipy)
    engine     model/inference/engine.py in the precision that it would serve in

A whole batch of 8 would take the eager side many minutes, so only every 8th of the 64 steps runs, with all its 100
diffusion steps; an image takes 8 times their sum. The sides alternate within each step; figures are medians over
rounds.

It takes about 4 minutes, and under 1 with --quick. It prints a table and, last, one JSON object. Example:

    python -m benchmarks.exact --quick
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.machine import describe_machine, save_result, without_zero_init
from fluid_kernels.head_loop import Chains, update
from model.conversion.import_mar import official_name
from model.inference.engine import Engine
from model.inference.heads.chains import make_chains
from model.inference.orders import masked_after, random_order
from model.inference.precision import choose_dtype, pack
from model.inference.prompts import LabelPrompts
from model.inference.requests import Request, Sampling
from model.inference.row_state import Snapshot
from model.networks.mar import ClassContext, Mar
from model.presets import MAR_PRESETS

STEPS, DIFFUSION_STEPS, GUIDANCE, EVERY = 64, 100, 3.0, 8
LABELS = [str(i) for i in range(1000)]
# Runs one autoregressive step of a batch whose earlier tokens are already decided: (step index, tokens).
Side = Callable[[int, Tensor], None]


def eager_side(model: Mar, batch: int) -> Side:
    """Return the eager side: float32, nothing reused between steps."""
    config, device = model.config, next(model.parameters()).device
    order = random_order(torch.arange(batch, device=device), config.tokens)
    chains = make_chains(model.head, (DIFFUSION_STEPS,))

    @torch.no_grad()
    def step(index: int, tokens: Tensor) -> None:
        known, chosen = _state(order, index, config.tokens)
        rows = torch.arange(batch, device=device)
        condition = ClassContext(torch.cat([model.backbone.classes(rows), model.backbone.no_class.expand(batch, -1)]))
        z = model.backbone(torch.cat([tokens, tokens]), torch.cat([known, known]), condition)
        _eager_chain(model, z[torch.cat([chosen, chosen])], chains)

    return step


def _eager_chain(model: Mar, z: Tensor, chains: Chains) -> Tensor:
    """Map (2·m, D) to (m, C): the head on the doubled batch, with embeddings and modulation computed in every step."""
    channels = model.config.channels
    x = torch.randn(len(z) // 2, channels, device=z.device)
    for index in reversed(range(DIFFUSION_STEPS)):
        out = model.head(torch.cat([x, x]), chains.timesteps[0, index].expand(len(z)), z)
        cond, uncond = out.chunk(2)
        eps = uncond[:, :channels] + GUIDANCE * (cond[:, :channels] - uncond[:, :channels])
        out = torch.cat([eps, cond[:, channels:]], 1)
        coefficients = chains.coefficients[0, index].expand(len(x), -1)
        x = update(out, x, coefficients, torch.randn_like(x), x.new_ones(len(x)), "eps", clamp=0.0)
    return x


def official_side(repo: Path, model: Mar, batch: int) -> Side:
    """Return the official side: the released encoder, decoder and sampler; on a CPU its calls to CUDA are disabled."""
    sys.path.insert(0, str(repo))
    device = next(model.parameters()).device
    if device.type == "cpu":
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    from models.mar import mar_base  # type: ignore[import-not-found]

    official = mar_base(diffloss_d=6, diffloss_w=1024, num_sampling_steps=str(DIFFUSION_STEPS)).eval()
    official.load_state_dict(official_state(model))
    official.to(device)
    order = random_order(torch.arange(batch, device=device), model.config.tokens)

    @torch.no_grad()
    def step(index: int, tokens: Tensor) -> None:
        known, chosen = _state(order, index, model.config.tokens)
        mask = torch.cat([~known, ~known]).float()
        embedding = torch.cat(
            [official.class_emb(torch.arange(batch, device=device)), official.fake_latent.repeat(batch, 1)]
        )
        x = official.forward_mae_encoder(torch.cat([tokens, tokens]), mask, embedding)
        z = official.forward_mae_decoder(x, mask)
        official.diffloss.sample(z[torch.cat([chosen, chosen])], 1.0, GUIDANCE)

    return step


def official_state(model: Mar) -> dict[str, Tensor]:
    """Return our weights under the names of the released code."""
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        name = official_name(key)
        state[name] = torch.cat([state[name], value]) if name in state else value  # q, then k and v
    for name in ("fake_latent", "encoder_pos_embed_learned", "decoder_pos_embed_learned"):
        state[name] = state[name][None]
    state["diffusion_pos_embed_learned"] = state["diffusion_pos_embed_learned"][None]
    state["mask_token"] = state["mask_token"][None, None]
    return state


def engine_side(engine: Engine, batch: int) -> Side:
    """Return the engine side: restore rows at the step's start, run the step, release them (which is included)."""

    def step(index: int, tokens: Tensor) -> None:
        for row in range(batch):
            request = Request(LABELS[row], row, Sampling(STEPS, DIFFUSION_STEPS, GUIDANCE))
            engine.restore(Snapshot(request, index, tokens[row]))
        engine.step()
        for row in range(batch):
            engine.release(row)

    return step


def _state(order: Tensor, index: int, total: int) -> tuple[Tensor, Tensor]:
    """Return (B, N) masks of the tokens known before autoregressive step `index`, and of those it decides."""
    before, after = masked_after(index - 1, STEPS, total), masked_after(index, STEPS, total)
    rank = order.argsort(1)
    return rank >= before, (rank >= after) & (rank < before)


def run(quick: bool, repo: Path | None) -> dict[str, Any]:
    """Print the table; return the figures."""
    torch.manual_seed(0)
    dtype = choose_dtype("auto", torch.device("cpu"))
    plain = without_zero_init(Mar(MAR_PRESETS["mar-b"]))
    packed = Mar(MAR_PRESETS["mar-b"]).eval().requires_grad_(False)
    packed.load_state_dict(plain.state_dict())
    pack(packed, dtype)
    steps = [36] if quick else list(range(EVERY // 2, STEPS, EVERY))
    result: dict[str, Any] = {"engine_dtype": str(dtype).removeprefix("torch.")}
    print(f"{'batch':>5s} {'side':10s}{'s/image':>12s}    (1 autoregressive step in {STEPS // len(steps)} measured)")
    for batch in (1, 8):
        engine = Engine(packed, LabelPrompts(packed, LABELS), batch, dtype)
        sides = {"eager": eager_side(plain, batch), "engine": engine_side(engine, batch)}
        if repo is not None:
            sides["official"] = official_side(repo, plain, batch)
        times = _alternate(sides, steps, batch, 1 if quick else 2)
        for name, rounds in times.items():
            seconds = statistics.median(rounds) * STEPS / len(steps) / batch
            result[f"{name}_seconds_per_image_b{batch}"] = round(seconds, 3)
            print(f"{batch:5d} {name:10s}{seconds:12.2f}")
        for name in [name for name in sides if name != "engine"]:
            ratio = statistics.median(a / b for a, b in zip(times[name], times["engine"], strict=True))
            key = "exact_speedup" if name == "eager" else f"exact_speedup_over_{name}"
            result[f"{key}_b{batch}"] = round(ratio, 2)
            print(f"      engine over {name}: {ratio:.2f}x")
    return result


def _alternate(sides: dict[str, Side], steps: list[int], batch: int, rounds: int) -> dict[str, list[float]]:
    """Time each side's steps, alternating; return one sum of seconds per side and round."""
    config = MAR_PRESETS["mar-b"]
    tokens = torch.randn(batch, config.tokens, config.channels)
    for side in sides.values():
        side(steps[0], tokens)  # first use of each shape is slower
    times: dict[str, list[float]] = {name: [] for name in sides}
    with tqdm(total=rounds * len(steps) * len(sides), desc=f"batch {batch}", leave=False) as bar:
        for _ in range(rounds):
            sums = dict.fromkeys(sides, 0.0)
            for index in steps:
                for name, side in sides.items():
                    begin = time.perf_counter()
                    side(index, tokens)
                    sums[name] += time.perf_counter() - begin
                    bar.update()
            for name, total in sums.items():
                times[name].append(total)
    return times


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one of the 64 steps, one round; nothing is saved")
    parser.add_argument("--mar-repo", type=Path, help="a clone of LTH14/mar to compare with (needs timm and scipy)")
    args = parser.parse_args(argv)
    result = {"machine": describe_machine(), **run(args.quick, args.mar_repo)}
    if not args.quick:
        print(f"saved to {save_result('exact', result)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
