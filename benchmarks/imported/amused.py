"""aMUSEd-256 scaled down: processor seconds of an image in our engine and in diffusers' own pipeline.

256 tokens, guidance on, order `confidence`; random weights of fewer and narrower blocks (--published: as many and as
wide as the published model's), text states in place of CLIP's and no autoencoder. One thread; the sides alternate, and
figures are medians of processor time, which other load on the machine changes little. Example:

    python -m benchmarks.imported.amused --batch 8 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks.gpu.cases import decode
from benchmarks.machine import Side, alternate, describe_machine
from fluid_kernels.ops.linear import native_bfloat16
from model.config import TextConfig
from model.discrete_config import AmusedConfig
from model.inference.conditioners.encoded import EncodedPrompts
from model.inference.engine import Engine
from model.inference.precision import DTYPES, pack
from model.inference.requests import Request, Sampling
from model.networks.imported.amused import Amused
from model.networks.imported.encoded_text import EncodedText

PUBLISHED = AmusedConfig(image_size=256, width=1024, heads=16)
SMALL = AmusedConfig(
    image_size=256, width=512, heads=8, depth=6, feed_forward=1408, embedding=384, block_width=384, block_heads=6,
    block_layers=2, pooled=384, text=TextConfig("clip", "text_encoder", 384, 77),
)  # fmt: skip


class RandomStates:
    """In place of CLIP: random states for every prompt."""

    def __init__(self, config: AmusedConfig):
        self.config = config

    def encode(self, prompt: str) -> EncodedText:
        text = self.config.text
        return EncodedText(torch.randn(1, text.max_tokens, text.dim), torch.randn(1, self.config.pooled))


def engine_side(config: AmusedConfig, batch: int, sampling: Sampling, dtype: torch.dtype) -> Side:
    """Our engine, with prompts that it has not seen: no condition comes from its cache but the empty one."""
    model = Amused(config).eval().requires_grad_(False)
    model.table.normal_(0, 0.02)  # imported models leave it to the weights that follow
    pack(model, dtype)
    conditioner = EncodedPrompts(RandomStates(config), torch.device("cpu"))  # type: ignore[arg-type]
    engine = Engine(model, conditioner, batch, dtype)

    def side(turn: int) -> None:
        decode(engine, [Request(f"{turn} {i}", i, sampling) for i in range(batch)])

    return side


def official_side(config: AmusedConfig, batch: int, sampling: Sampling, dtype: torch.dtype) -> Side:
    """The pipeline up to its ids, with random weights of its own and text states in place of its text encoder."""
    from diffusers.models.unets.uvit_2d import UVit2DModel
    from diffusers.pipelines.deprecated.amused.pipeline_amused import AmusedPipeline
    from diffusers.schedulers.scheduling_amused import AmusedScheduler

    transformer: Any = UVit2DModel.from_config(Amused(config).backbone.net.config)
    pipeline = AmusedPipeline(
        vqvae=None, tokenizer=None, text_encoder=None, scheduler=AmusedScheduler(config.mask_token),
        transformer=transformer.eval().requires_grad_(False).to(dtype),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    texts = RandomStates(config)

    def side(turn: int) -> None:
        prompts, negative = (EncodedText.stack([texts.encode("")] * count) for count in (batch, 1))
        pipeline(
            prompt_embeds=prompts.pooled.to(dtype), encoder_hidden_states=prompts.states.to(dtype),
            negative_prompt_embeds=negative.pooled.to(dtype).expand(batch, -1),
            negative_encoder_hidden_states=negative.states.to(dtype).expand(batch, -1, -1),
            num_inference_steps=sampling.num_inference_steps, guidance_scale=sampling.guidance_scale,
            generator=torch.Generator().manual_seed(turn), output_type="latent",
        )  # fmt: skip

    return side


def measure(config: AmusedConfig, batch: int, steps: int, rounds: int, dtype: str) -> dict[str, Any]:
    """Processor seconds of an image on each side, medians of the rounds after one that warms up, and their ratio."""
    rest = (config, batch, Sampling(steps, 1, 10.0, order="confidence"), DTYPES[dtype])
    found = alternate({"engine": engine_side(*rest), "official": official_side(*rest)}, batch, rounds)
    shape = {"batch": batch, "steps": steps, "dtype": dtype, "width": config.width, "depth": config.depth}
    return {**shape, "seconds_per_image": found, "ratio": found["official"] / found["engine"]}


def run(quick: bool) -> dict[str, Any]:
    """Every batch and dtype; bfloat16 only where the processor multiplies it. On one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dtypes = ("float32", "bfloat16") if native_bfloat16() else ("float32",)
    rows = []
    for dtype in dtypes[: 1 if quick else None]:
        for batch in (1,) if quick else (1, 8):
            row = measure(SMALL, batch, 2 if quick else 4, 1 if quick else 3, dtype)
            seconds = row["seconds_per_image"]
            both = f"engine {seconds['engine']:6.2f} s  diffusers {seconds['official']:6.2f} s"
            print(f"batch {batch}, {dtype:8s}  {both}  {row['ratio']:.2f}x")
            rows.append(row)
    torch.set_num_threads(threads)
    return {"amused": rows, "amused_over_pipeline": rows[-1]["ratio"]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12, help="autoregressive steps (default: 12)")
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up (default: 3)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--published", action="store_true", help="the published model's sizes: 6 GB of memory")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    config = PUBLISHED if args.published else SMALL
    result = measure(config, args.batch, args.steps, args.rounds, args.dtype)
    print(json.dumps({"machine": describe_machine(), **result}))


if __name__ == "__main__":
    main()
