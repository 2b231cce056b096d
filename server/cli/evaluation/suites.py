"""The prompts of a suite, and where the image files of each belong."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import OperatorError


class EvaluationRefused(OperatorError):
    """`fluid eval` cannot use a file, a flag or its folder."""


#: What a line of `fluid eval prompts` cannot set, because the command does.
REFUSED = {"n", "model", "stream", "response_format", "output_format"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and the files of its images, relative to the output folder; `options` are parameters of the API."""

    text: str
    files: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: str = ""  #: line of the suite's file, for scoring tools that want it beside the images


@dataclass(frozen=True, slots=True)
class Suite:
    """A kind of prompt list: how it is read, and how many images of each prompt its authors take."""

    read: Callable[[Path, int], list[Prompt]]
    images: int
    wants: str  #: what the source file is


def _lines(source: Path) -> list[tuple[int, Any]]:
    """(number, object) of every line that is not blank."""
    found = []
    for number, line in enumerate(_text(source).split("\n"), 1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise EvaluationRefused(f"{source}, line {number} is not JSON: {error}.") from error
    if not found:
        raise EvaluationRefused(f"{source} has no lines.")
    return found


def _text(source: Path) -> str:
    try:
        return source.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationRefused(f"cannot read {source}: {getattr(error, 'strerror', None) or error}.") from error


def _prompt_of(source: Path, number: int, line: Any) -> str:
    if not isinstance(line, dict) or not isinstance(line.get("prompt"), str) or not line["prompt"].strip():
        raise EvaluationRefused(f"{source}, line {number} must be an object with a text 'prompt'.")
    return str(line["prompt"])


def read_geneval(source: Path, images: int) -> list[Prompt]:
    """GenEval's evaluation_metadata.jsonl: NUMBER/samples/IMAGE.png, and NUMBER/metadata.jsonl with the line."""
    found = []
    for index, (number, line) in enumerate(_lines(source)):
        files = tuple(f"{index:05d}/samples/{image:04d}.png" for image in range(images))
        prompt = _prompt_of(source, number, line)
        if not isinstance(line.get("include"), list) or "tag" not in line:
            raise EvaluationRefused(
                f"{source}, line {number} has no 'tag' and 'include', so it is not GenEval's evaluation_metadata.jsonl."
            )
        found.append(Prompt(prompt, files, metadata=json.dumps(line)))
    return found


def read_prompts(source: Path, images: int) -> list[Prompt]:
    """JSON Lines with a `prompt` and any parameters of the API: images/LINE-IMAGE.png."""
    found = []
    for index, (number, line) in enumerate(_lines(source)):
        prompt = _prompt_of(source, number, line)
        if refused := REFUSED & line.keys():
            raise EvaluationRefused(
                f"{source}, line {number}: {sorted(refused)[0]!r} cannot be set by a line. --images sets the number of "
                "images, --model the model; the files are PNG."
            )
        files = tuple(f"images/{index:06d}-{image}.png" for image in range(images))
        found.append(Prompt(prompt, files, {name: value for name, value in line.items() if name != "prompt"}))
    return found


def read_coco(source: Path, images: int) -> list[Prompt]:
    """COCO's captions_val2014.json: one caption of each image, in an order shuffled once for all: images/NUMBER.png.

    A prefix of that order is a random sample of the images, so `--limit 30000` is the usual FID-30K.
    """
    try:
        captions = json.loads(_text(source))["annotations"]
        first: dict[int, tuple[int, str]] = {}
        for each in captions:
            known = first.get(each["image_id"])
            if known is None or each["id"] < known[0]:
                first[each["image_id"]] = (each["id"], each["caption"].strip())
        texts = [first[image] for image in sorted(first)]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationRefused(
            f"{source} is not a file of COCO's captions such as captions_val2014.json ({type(error).__name__})."
        ) from error
    random.Random(0).shuffle(texts)
    return [
        Prompt(text, tuple(f"images/{index:06d}{f'-{i}' if images > 1 else ''}.png" for i in range(images)))
        for index, (_, text) in enumerate(texts)
    ]


SUITES = {
    "geneval": Suite(read_geneval, 4, "evaluation_metadata.jsonl of github.com/djghosh13/geneval"),
    "coco": Suite(read_coco, 1, "captions_val2014.json of cocodataset.org"),
    "prompts": Suite(read_prompts, 1, 'a file of lines such as {"prompt": "a red apple"}'),
}
