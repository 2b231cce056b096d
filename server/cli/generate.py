"""`fluid generate`: run the engine in this process, without a server or a queue."""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.cli.flags import add_command, add_image_flags, add_model_flags
from server.cli.progress import Status, progress_bar
from server.client.results import write_whole
from server.errors import InvalidRequest
from server.gateway.requests.resolve import resolve
from server.gateway.requests.validation import validated
from server.gateway.schemas.images import ImageRequest
from server.images.codec import check_output, encode, format_from_name, numbered
from server.images.recipe import checkpoint_warnings, load_recipe, make_recipe, to_request
from server.jobs import JobInput
from server.model_info import ModelInfo
from server.settings import Settings
from server.worker.engine.loader import load_engine
from server.worker.engine.protocol import RowRequest


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "generate",
        "Generate images in this process, without a server or a queue.",
        "Every file contains the recipe of its image, which --like reads.\n\n"
        "examples:\n  fluid generate 'a red apple, 3d style' --out apple.png --seed 7 --quality high\n"
        "  fluid generate 'a castle, flat style' --n 4 --out castle.webp     writes castle-0.webp to castle-3.webp\n"
        "  fluid generate --like apple.png --guidance 4 --out again.png",
    )
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="optional with --like")
    parser.add_argument("--like", type=Path, metavar="IMAGE", help="reuse its recipe; other flags override it")
    parser.add_argument(
        "--out", type=Path, default=Path("out.png"), help=".png, .webp or .jpg; several are numbered (default: out.png)"
    )
    add_model_flags(parser, "--model")
    add_image_flags(parser)
    sampling = parser.add_argument_group("sampling", "Defaults come from the checkpoint and --quality.")
    sampling.add_argument("--diffusion-steps", type=int, metavar="N", help="diffusion steps per token")
    sampling.add_argument(
        "--diffusion-steps-final", type=int, metavar="N",
        help="diffusion steps at the last autoregressive step, approached linearly",
    )  # fmt: skip
    sampling.add_argument("--temperature", type=float, help="scale of the sampling noise; lower is less varied")
    sampling.add_argument(
        "--order", choices=("random", "halton", "gtr", "confidence", "raster"), help="order in which tokens are decoded"
    )
    sampling.add_argument("--top-k", type=int, metavar="K", help="discrete tokens: sample from the k likeliest")
    sampling.add_argument("--top-p", type=float, metavar="P", help="discrete tokens: share of the probability")
    sampling.add_argument(
        "--schedule", choices=("linear", "constant"), dest="guidance_schedule", help="guidance over the steps"
    )
    sampling.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("FROM", "TO"),
        help="guide only between these shares of the steps, for example 0.2 0.8",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(settings: Settings, args: argparse.Namespace) -> None:
    """Raise InvalidRequest for parameters that the schema or the model refuses."""
    like = load_recipe(args.like) if args.like else None
    # The model is the one of --checkpoint; `_generate` warns if the recipe names another.
    defaults = {name: value for name, value in to_request(like or {}).items() if name != "model"}
    flags = {name: getattr(args, name, None) for name in ImageRequest.model_fields}
    flags["output_format"] = format_from_name(args.out)
    request = validated(ImageRequest, defaults | {name: value for name, value in flags.items() if value is not None})
    check_output(args.out, request.background)
    _generate(settings, request, args.out, like)


def _generate(settings: Settings, request: ImageRequest, out: Path, like: Mapping[str, Any] | None) -> None:
    began = time.monotonic()
    with Status("starting") as status:
        status.update("loading the model")
        engine = load_engine(replace(settings, max_rows=request.n or 1))
    info = ModelInfo.from_mapping(engine.info())
    if request.background == "transparent" and not info.transparent:
        raise InvalidRequest(f"{info.id} generates no alpha: ask for --background opaque or another --checkpoint.")
    job, warnings = resolve(request, {info.id: info}, info.id)
    for warning in [*warnings, *(checkpoint_warnings(like, info.checkpoint_sha256) if like else [])]:
        print(warning, file=sys.stderr)
    loaded_s = time.monotonic() - began
    try:
        rows = engine.admit([RowRequest.of(job, index) for index in range(job.n)])
    except ValueError as error:
        raise InvalidRequest(f"The model cannot generate this: {error}") from error
    index_of = dict(zip(rows, range(job.n), strict=True))
    paths: list[Path] = []
    with progress_bar(job.prompt[:40], job.sampling.num_inference_steps, "step") as bar:
        while len(paths) < job.n:
            for row in engine.step():
                paths.append(_save(engine.image(row), job, index_of[row], info, out))
                engine.release(row)
            bar.update()
    generated_s = time.monotonic() - began - loaded_s
    count = f"{job.n} image" + "s" * (job.n > 1)
    print(f"seed {job.seed}; model loaded in {loaded_s:.2f} s, {count} generated in {generated_s:.2f} s")
    for path in sorted(paths):
        print(path)


def _save(pixels: bytes, job: JobInput, index: int, info: ModelInfo, out: Path) -> Path:
    metadata = make_recipe(job, index, info.checkpoint_sha256, info.terms)
    size = (job.width, job.height)
    data = encode(pixels, size, job.output_format, job.output_compression, metadata)
    return write_whole(numbered(out, index, job.n), data)
