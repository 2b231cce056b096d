"""`fluid eval`: generate a published list of prompts through a running service, and score the images."""

import argparse
import asyncio
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from server.cli.evaluation.drawing import STATE, Plan, begin, draw
from server.cli.evaluation.suites import SUITES, EvaluationRefused
from server.cli.flags import add_command, add_service_flags, given
from server.client.aio import AsyncFluidClient
from server.settings import Settings

MOST_AT_ONCE = 256


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "eval",
        "Generate a published list of prompts through a running service, and score the images.",
        "SUITE    SOURCE                                     images each    written as\n"
        "geneval  evaluation_metadata.jsonl of GenEval       4              NUMBER/samples/IMAGE.png, metadata.jsonl\n"
        "coco     captions_val2014.json of COCO              1              images/NUMBER.png\n"
        'prompts  lines such as {"prompt": "a red apple"}    1              images/LINE-IMAGE.png\n\n'
        "Interrupt the command and run it again: it generates what is missing. evaluation.json in the folder has the\n"
        "model, the checkpoint's hash, seeds, settings and scores. GenEval's own evaluate_images.py scores the first\n"
        "suite; --fid and --clip score the others, with weights that you have (pip install '.[eval]' in a clone).\n\n"
        "examples:\n  fluid eval geneval evaluation_metadata.jsonl -o out/geneval\n"
        "  fluid eval coco captions_val2014.json -o out/coco --limit 30000 --fid val2014/ --inception inception.pth\n"
        "  fluid eval prompts mine.jsonl -o out/mine --images 4 --quality high --clip clip-vit-large-patch14/",
    )
    parser.add_argument("suite", choices=tuple(SUITES), metavar="SUITE", help="geneval, coco or prompts")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the suite's file of prompts")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--images", type=int, metavar="N", help="images of each prompt (default: the suite's)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image (default: %(default)s)")
    parser.add_argument("--quality", choices=("low", "medium", "high"), help="preset for the step counts")
    parser.add_argument("--steps", type=int, dest="num_inference_steps", metavar="N", help="autoregressive steps")
    parser.add_argument("--guidance", type=float, dest="guidance_scale", metavar="SCALE", help="guidance scale")
    parser.add_argument(
        "--at-once", type=int, default=16, metavar="N", help="requests under way at a time (default: %(default)s)"
    )
    scores = parser.add_argument_group("scores")
    scores.add_argument("--fid", type=Path, metavar="FOLDER", help="Frechet inception distance to these real images")
    scores.add_argument("--inception", type=Path, metavar="FILE", help="torch-fidelity's weights of Inception v3")
    scores.add_argument("--clip", type=Path, metavar="FOLDER", help="CLIP score by this CLIP model of transformers")
    add_service_flags(parser)
    parser.set_defaults(run=run)


def run(settings: Settings, args: argparse.Namespace) -> None:
    """Generate what is missing, then score.

    Raises:
        EvaluationRefused: a file or flag cannot be used, or the folder belongs to another evaluation.
        ServiceError: the service refused or failed.
    """
    _check(args)
    images = args.images or SUITES[args.suite].images
    prompts = SUITES[args.suite].read(args.source, images)[: args.limit]
    digest = hashlib.sha256(args.source.read_bytes()).hexdigest()
    options = given(args, "quality", "num_inference_steps", "guidance_scale")

    async def generate() -> tuple[Plan, int]:
        url, key = args.url or settings.base_url, args.api_key or settings.api_key
        async with AsyncFluidClient(url, api_key=key, max_retries=8) as client:
            model = await _model(client, args.model)
            sha256 = str(model["checkpoint_sha256"])
            plan = Plan(args.suite, digest, model["id"], sha256, args.seed, images, options)
            begin(args.out, plan)
            return plan, await draw(client, prompts, args.out, plan, args.at_once)

    try:
        plan, made = asyncio.run(generate())
    except OSError as error:
        raise EvaluationRefused(
            f"cannot write to {args.out}: {error.strerror}. Choose another folder with -o."
        ) from error
    total, checkpoint = len(prompts) * images, plan.checkpoint_sha256[:12]
    print(f"{made} images generated, {total} in {args.out}, by {plan.model} (checkpoint {checkpoint})")
    if args.fid or args.clip:
        _score(args, [prompt.text for prompt in prompts for _ in prompt.files])
    elif args.suite == "geneval":
        print(f"In GenEval's folder: python evaluation/evaluate_images.py {args.out.resolve()} --model-path DETECTOR")


def _check(args: argparse.Namespace) -> None:
    for name, least, most in (("limit", 1, None), ("images", 1, 16), ("at_once", 1, MOST_AT_ONCE), ("seed", 0, None)):
        value = getattr(args, name)
        if value is not None and (value < least or (most is not None and value > most)):
            limit = f"{least} to {most}" if most is not None else f"at least {least}"
            raise EvaluationRefused(f"--{name.replace('_', '-')} is {value}; it must be {limit}.")
    if bool(args.fid) != bool(args.inception):
        raise EvaluationRefused("--fid and --inception go together: real images, and weights to compare with them.")
    if args.suite == "geneval" and (args.fid or args.clip):
        raise EvaluationRefused("--fid and --clip are for coco and prompts; GenEval's own tool scores geneval.")


async def _model(client: AsyncFluidClient, wanted: str | None) -> dict[str, Any]:
    """The model of this id; else the service's default."""
    models = await client.models()
    found = [model for model in models if (model["default"] if wanted is None else model["id"] == wanted)]
    if not found:
        served = ", ".join(model["id"] for model in models) or "none"
        which = f"--model {wanted}" if wanted else "The service's default model"
        raise EvaluationRefused(f"{which} is not served. Served: {served}.")
    return found[0]


def _score(args: argparse.Namespace, texts: list[str]) -> None:
    """Score in a process of its own, the only one that loads torch; it adds to the folder's record."""
    command = [sys.executable, "-m", "model.evaluation.folder_scores", str(args.out / STATE)]
    if args.fid:
        command += ["--fid", str(args.fid), "--inception", str(args.inception)]
    if args.clip:
        command += ["--clip", str(args.clip)]
    lines = "".join(text.replace("\n", " ") + "\n" for text in texts)
    done = subprocess.run(command, input=lines, text=True, check=False)
    if done.returncode:
        raise EvaluationRefused(f"the images are in {args.out}, but they were not scored; see the message above.")
