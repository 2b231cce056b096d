"""`fluid generate`: the engine in this process, no server, no queue."""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.cli import client_commands
from server.cli.flags import _command, _model_flags
from server.cli.progress import Status, steps
from server.errors import InvalidRequest
from server.gateway.requests.resolve import resolve
from server.gateway.schemas.images import ImageRequest
from server.images.codec import encode, numbered
from server.images.recipe import difference, recipe
from server.jobs import JobInput
from server.model_info import ModelInfo
from server.settings import Settings
from server.worker.engine.protocol import RowRequest


def run(settings: Settings, request: ImageRequest, out: Path, like: Mapping[str, Any] | None = None) -> list[Path]:
    """Draw and save; with n > 1 the files are numbered. `like`: the recipe of the picture that is to come again."""
    from server.worker.engine.loader import load_engine

    began = time.monotonic()
    with Status("starting") as status:
        status.say("loading the model")
        engine = load_engine(replace(settings, max_rows=request.n or 1))
    info = ModelInfo.from_mapping(engine.info())
    job, warnings = resolve(request, {info.id: info}, info.id)
    for warning in [*warnings, *(difference(like, info.checkpoint_sha256) if like else [])]:
        print(warning, file=sys.stderr)
    loaded_s = time.monotonic() - began
    try:
        rows = engine.admit([RowRequest.of(job, index) for index in range(job.n)])
    except ValueError as error:
        raise InvalidRequest(f"The model cannot draw this: {error}") from error
    row_of = dict(zip(rows, range(job.n), strict=True))
    paths: list[Path] = []
    with steps(job.prompt[:40], job.sampling.num_inference_steps) as bar:
        while len(paths) < job.n:
            for row in engine.step():
                paths.append(_save(engine.image(row), job, row_of[row], info, out))
                engine.release(row)
            bar.update()
    drawn_s = time.monotonic() - began - loaded_s
    print(f"seed {job.seed}; model loaded in {loaded_s:.2f} s, {job.n} drawn in {drawn_s:.2f} s")
    for path in sorted(paths):
        print(path)
    return sorted(paths)


def _save(pixels: bytes, job: JobInput, index: int, info: ModelInfo, out: Path) -> Path:
    path = numbered(out, index, job.n)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = recipe(job, index, info.checkpoint_sha256)
    size = (job.width, job.height)
    path.write_bytes(encode(pixels, size, job.output_format, job.output_compression, metadata))
    return path


def _add_generate(commands: Any) -> None:
    parser = _command(
        commands,
        "generate",
        "Draw in this process, without server or queue.",
        "example:\n  fluid generate 'a red apple, 3d style' --out apple.png --seed 7 --quality high\n"
        "  fluid generate --like apple.png --out again.png",
    )
    parser.add_argument("prompt", nargs="?")
    parser.add_argument("--like", type=Path, help="a picture that was drawn here; other options change its recipe")
    parser.add_argument("--out", type=Path, default=Path("out.png"), help=".png, .webp or .jpg")
    _model_flags(parser)
    client_commands.image_flags(parser)
    parser.add_argument("--diffusion-steps", type=int, help="diffusion steps per token")
    parser.add_argument("--schedule", choices=("linear", "constant"), dest="guidance_schedule")
    parser.add_argument("--temperature", type=float, help="spread of the sampling")
    parser.add_argument("--order", choices=("random", "halton"), help="in which order tokens are decided")
    parser.add_argument("--diffusion-steps-final", type=int, help="of the last autoregressive step (annealing)")
    parser.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("FROM", "TO"), help="shares of the steps, e.g. 0.2 0.8"
    )
    parser.set_defaults(run=_generate)


def _generate(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import generate
    from server.gateway.requests.validation import validated
    from server.gateway.schemas.images import ImageRequest
    from server.images.codec import format_of
    from server.images.recipe import load_recipe, request_of

    recipe = load_recipe(args.like) if args.like else None
    # Which checkpoint draws is said by --checkpoint; `run` tells if it is another one.
    again = {name: value for name, value in request_of(recipe or {}).items() if name != "model"}
    given = {name: getattr(args, name, None) for name in ImageRequest.model_fields}
    given["output_format"] = format_of(args.out)
    request = validated(ImageRequest, again | {k: v for k, v in given.items() if v is not None})
    generate.run(settings, request, args.out, recipe)
