"""Generate the images of a suite through a running service; those whose files exist are not generated again."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.cli.evaluation.suites import EvaluationRefused, Prompt
from server.cli.progress import progress_bar
from server.client.aio import AsyncFluidClient
from server.errors import ServiceError

STATE = "evaluation.json"
SEED_STRIDE = 1 << 16  # between the seeds of two prompts, whose images have consecutive ones


@dataclass(frozen=True, slots=True)
class Plan:
    """What the output folder holds. Only the same command goes on in it."""

    suite: str
    source_sha256: str
    model: str
    checkpoint_sha256: str
    seed: int
    images: int  #: of each prompt
    options: Mapping[str, Any]  #: parameters of the API, the same for all prompts

    def as_json(self) -> dict[str, Any]:
        return {
            "suite": self.suite, "source_sha256": self.source_sha256, "model": self.model,
            "checkpoint_sha256": self.checkpoint_sha256, "seed": self.seed, "images": self.images,
            "options": dict(self.options),
        }  # fmt: skip


def begin(out: Path, plan: Plan) -> None:
    """Write the record of a new output folder, or check that of an old one.

    Raises:
        EvaluationRefused: the folder belongs to another evaluation; the first difference is named.
    """
    state = out / STATE
    if not state.exists():
        out.mkdir(parents=True, exist_ok=True)
        part = state.with_suffix(".part")
        part.write_text(json.dumps(plan.as_json(), indent=1) + "\n")
        part.rename(state)
        return
    try:
        record = dict(json.loads(state.read_bytes()))
    except (ValueError, TypeError) as error:
        raise EvaluationRefused(f"{state} is not a state of this command. Choose another folder with -o.") from error
    for name, value in plan.as_json().items():
        if record.get(name) != value:
            raise EvaluationRefused(
                f"{out} belongs to an evaluation with {name} {record.get(name)!r}, not {value!r}. Choose another "
                "folder with -o, or repeat that command."
            )


async def draw(client: AsyncFluidClient, prompts: Sequence[Prompt], out: Path, plan: Plan, at_once: int) -> int:
    """Generate what is missing, `at_once` requests at a time; return the number of images that were generated.

    Raises:
        ServiceError: a request was refused or failed, and the others under way have ended; what is done stays.
    """
    missing = [
        (number, prompt)
        for number, prompt in enumerate(prompts)
        if not all((out / file).exists() for file in prompt.files)
    ]
    waiting = iter(missing)
    total = sum(len(prompt.files) for prompt in prompts)
    to_generate = sum(len(prompt.files) for _, prompt in missing)
    with progress_bar(f"eval {plan.suite}", total, "image") as bar:
        bar.update(total - to_generate)

        async def work() -> None:
            for number, prompt in waiting:  # shared by all, so each takes the next one
                try:
                    await _one(client, number, prompt, out, plan)
                except Exception:
                    list(waiting)  # the others end with what they have begun
                    raise
                bar.update(len(prompt.files))

        results = await asyncio.gather(*(work() for _ in range(at_once)), return_exceptions=True)
    for failure in results:
        if isinstance(failure, BaseException):
            raise failure
    return to_generate


async def _one(client: AsyncFluidClient, number: int, prompt: Prompt, out: Path, plan: Plan) -> None:
    seed = plan.seed + number * SEED_STRIDE
    options = {"seed": seed, "priority": "low", **plan.options, **prompt.options}
    try:
        images = await client.generate(
            prompt.text, model=plan.model, n=len(prompt.files), output_format="png", **options
        )
    except ServiceError as error:
        message = f"prompt {number} ({prompt.files[0]}): {error}"
        raise ServiceError(message, status=error.status, code=error.code, param=error.param) from error
    folder = (out / prompt.files[0]).parent
    folder.mkdir(parents=True, exist_ok=True)
    if prompt.metadata:
        (folder.parent / "metadata.jsonl").write_text(prompt.metadata + "\n")
    for file, image in zip(prompt.files, images, strict=True):
        image.save(out / file)
