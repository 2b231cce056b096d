"""NOVA scaled down: processor seconds of an image in our engine and in the released pipeline.

512 pixels: 1024 tokens behind 256 of context, guidance on, flow matching; random weights of a few narrow blocks, no
autoencoder and no text encoder. One thread; the sides alternate, and figures are medians of processor time, so that
other load on the machine changes them little. The last line is JSON. Examples:

    python -m benchmarks.nova --nova-repo NOVA                        a clone of baaivision/NOVA; needs scipy and einops
    python -m benchmarks.nova --nova-repo NOVA --batches 8 --dtype bfloat16
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

from benchmarks.machine import describe_machine
from model.config import KlConfig, NovaConfig, TextConfig
from model.inference.engine import Engine
from model.inference.precision import DTYPES, pack
from model.inference.prompts import NovaPrompts
from model.inference.requests import Request, Sampling
from model.networks.imported.nova import Nova
from model.networks.text_encoder import HashEncoder

GUIDANCE, TEXT_TOKENS = 5.0, 20
CONFIG = NovaConfig(
    image_size=512, width=384, heads=6, context_depth=2, depth=4, head_width=384, head_depth=6,
    tokenizer=KlConfig(widths=(128, 256, 512, 512), latent_channels=4, attention=False, patch=2),
    text=TextConfig(kind="hash", name="words", dim=256, max_tokens=256),
)  # fmt: skip
Side = Callable[[int], None]  # draws a batch; the number tells one round's prompts from another's


def engine_side(batch: int, sampling: Sampling, dtype: torch.dtype) -> Side:
    """Our engine, with prompts that it has not seen: no condition comes from its cache but the empty one."""
    model = Nova(CONFIG).eval().requires_grad_(False)
    pack(model, dtype)
    engine = Engine(model, NovaPrompts(model, HashEncoder(CONFIG.text)), batch, dtype)

    def side(turn: int) -> None:
        words = " ".join(f"word{i}" for i in range(TEXT_TOKENS - 3))
        rows = engine.admit([Request(f"{turn} {i} {words}", i, sampling) for i in range(batch)])
        done: set[int] = set()
        while len(done) < batch:
            done |= set(engine.step())
        for row in rows:
            engine.release(row)

    return side


def official_side(repo: Path, batch: int, sampling: Sampling, dtype: torch.dtype) -> Side:
    """The released pipeline up to its latents, with text states in place of its text encoder."""
    sys.path.insert(0, str(repo))
    from diffnext.models.transformers import transformer_nova as nova  # type: ignore[import-not-found]
    from diffnext.pipelines import NOVAPipeline  # type: ignore[import-not-found]
    from diffnext.schedulers.scheduling_cfm import FlowMatchEulerDiscreteScheduler  # type: ignore[import-not-found]

    sizes = {"embed_dim": CONFIG.width, "num_heads": CONFIG.heads}
    nova.VIDEO_ENCODERS.register("small", nova.video_encoder, depth=CONFIG.context_depth, **sizes)
    nova.IMAGE_ENCODERS.register("small", nova.image_encoder, depth=CONFIG.depth, **sizes)
    head = {"depth": CONFIG.head_depth, "embed_dim": CONFIG.head_width}
    nova.IMAGE_DECODERS.register("small", nova.image_decoder, **head)
    transformer = nova.NOVATransformer3DModel(
        image_dim=4, image_size=[512, 512], image_stride=8, text_token_dim=CONFIG.text.dim,
        text_token_len=CONFIG.text.max_tokens, image_base_size=[CONFIG.grid] * 2,
        video_base_size=[1, CONFIG.grid // 2, CONFIG.grid // 2], arch=["small"] * 3,
    )  # fmt: skip
    transformer.eval().requires_grad_(False).to(dtype)
    pipeline = NOVAPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler())
    states = [torch.randn(TEXT_TOKENS, CONFIG.text.dim) for _ in range(batch)]

    def side(turn: int) -> None:
        pipeline(
            prompt_embeds=states, num_inference_steps=sampling.num_inference_steps,
            num_diffusion_steps=sampling.diffusion_steps, guidance_scale=GUIDANCE, disable_progress_bar=True,
            generator=torch.Generator().manual_seed(turn), output_type="latent",
        )  # fmt: skip

    return side


def measure(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each side in each round; a round before them warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            begin = time.process_time()
            side(turn)
            if turn:
                times[name].append(time.process_time() - begin)
    return times


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sampling, dtype = Sampling(args.steps, args.diffusion_steps, GUIDANCE), DTYPES[args.dtype]
    found: dict[str, Any] = {}
    for batch in args.batches:
        sides = {"engine": engine_side(batch, sampling, dtype)}
        if args.nova_repo is not None:
            sides["official"] = official_side(args.nova_repo, batch, sampling, dtype)
        each = {name: statistics.median(all_) / batch for name, all_ in measure(sides, args.rounds).items()}
        text = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in each.items())
        ratio = f", {each['official'] / each['engine']:.2f}x" if "official" in each else ""
        print(f"batch {batch}, {args.steps} x {args.diffusion_steps} steps, {args.dtype}: {text} an image{ratio}")
        found[str(batch)] = each
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nova-repo", type=Path, help="a clone of baaivision/NOVA; without it, our side alone")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=8, help="autoregressive steps (default: 8)")
    parser.add_argument("--diffusion-steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    args = parser.parse_args(argv)
    print(json.dumps({"machine": describe_machine(), "dtype": args.dtype, "seconds_per_image": run(args)}))


if __name__ == "__main__":
    main()
