"""NOVA scaled down: processor seconds of an image in our engine and in the released pipeline.

512 pixels: 1024 tokens behind 256 of context, guidance on, 25 steps of flow matching; random weights of a few narrow
blocks, no autoencoder and no text encoder. One thread; the sides alternate, and figures are medians of processor time,
which other load on the machine changes little. NOVA is a clone of baaivision/NOVA; it needs scipy and einops. Example:

    python -m benchmarks.imported.nova NOVA --batch 8 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import decode
from benchmarks.machine import Side, alternate, describe_machine
from model.config import KlConfig, NovaConfig, TextConfig
from model.inference.engine import Engine
from model.inference.precision import DTYPES, pack
from model.inference.prompts import NovaPrompts
from model.inference.requests import Request, Sampling
from model.networks.imported.nova import Nova
from model.networks.text_encoder import HashEncoder

WORDS = 20
CONFIG = NovaConfig(
    image_size=512, width=384, heads=6, context_depth=2, depth=4, head_width=384, head_depth=6,
    tokenizer=KlConfig(widths=(128, 256, 512, 512), latent_channels=4, attention=False, patch=2),
    text=TextConfig(kind="hash", name="words", dim=256, max_tokens=256),
)  # fmt: skip


def engine_side(batch: int, sampling: Sampling, dtype: torch.dtype) -> Side:
    """Our engine, with prompts that it has not seen: no condition comes from its cache but the empty one."""
    model = Nova(CONFIG).eval().requires_grad_(False)
    pack(model, dtype)
    engine = Engine(model, NovaPrompts(model, HashEncoder(CONFIG.text)), batch, dtype)

    def side(turn: int) -> None:
        decode(engine, [Request(f"{turn} {i}" + " word" * (WORDS - 3), i, sampling) for i in range(batch)])

    return side


def released_transformer(config: NovaConfig) -> Any:
    """The released class in these sizes, with random weights of its own; its clone is in sys.path."""
    from diffnext.models.transformers import transformer_nova as nova  # type: ignore[import-not-found]

    sizes = {"embed_dim": config.width, "num_heads": config.heads}
    nova.VIDEO_ENCODERS.register("ours", nova.video_encoder, depth=config.context_depth, **sizes)
    nova.IMAGE_ENCODERS.register("ours", nova.image_encoder, depth=config.depth, **sizes)
    head = {"depth": config.head_depth, "embed_dim": config.head_width}
    nova.IMAGE_DECODERS.register("ours", nova.image_decoder, **head)
    model = nova.NOVATransformer3DModel(
        image_dim=4, image_size=[config.image_size] * 2, image_stride=8, text_token_dim=config.text.dim,
        text_token_len=config.text.max_tokens, image_base_size=[config.grid] * 2,
        video_base_size=[1, config.grid // 2, config.grid // 2], arch=["ours"] * 3,
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def official_side(repo: Path, batch: int, sampling: Sampling, dtype: torch.dtype) -> Side:
    """The released pipeline up to its latents, with text states in place of its text encoder."""
    sys.path.insert(0, str(repo))
    from diffnext.pipelines import NOVAPipeline  # type: ignore[import-not-found]
    from diffnext.schedulers.scheduling_cfm import FlowMatchEulerDiscreteScheduler  # type: ignore[import-not-found]

    pipeline = NOVAPipeline(
        transformer=released_transformer(CONFIG).to(dtype), scheduler=FlowMatchEulerDiscreteScheduler()
    )
    states = [torch.randn(WORDS, CONFIG.text.dim) for _ in range(batch)]

    def side(turn: int) -> None:
        pipeline(
            prompt_embeds=states, num_inference_steps=sampling.num_inference_steps,
            num_diffusion_steps=sampling.diffusion_steps, guidance_scale=sampling.guidance_scale,
            disable_progress_bar=True, generator=torch.Generator().manual_seed(turn), output_type="latent",
        )  # fmt: skip

    return side


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", type=Path, metavar="NOVA")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="autoregressive steps (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up (default: 3)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rest = (args.batch, Sampling(args.steps, 25, 5.0), DTYPES[args.dtype])
    sides = {"engine": engine_side(*rest), "official": official_side(args.repo, *rest)}
    found = alternate(sides, args.batch, args.rounds)
    result = {"batch": args.batch, "steps": args.steps, "dtype": args.dtype, "seconds_per_image": found}
    print(json.dumps({"machine": describe_machine(), **result, "ratio": found["official"] / found["engine"]}))


if __name__ == "__main__":
    main()
