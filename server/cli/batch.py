"""`fluid batch`: a file of prompts to a folder of pictures, through a running service; run again, it goes on."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from server.batch_format import MAX_LINES, OVER
from server.cli import progress
from server.client import FluidClient
from server.errors import BatchRefused

STATE = "batch.json"
POLL_S = 1.0
FETCH_EVERY_S = 20.0  # pictures come to disk while the rest is drawn


def run(client: FluidClient, prompts: Path, out: Path, options: dict[str, Any], *, cancel: bool) -> None:
    """Begin, or go on with, the batch of this folder until it is over and every picture is there.

    Raises:
        BatchRefused: the file or the folder is not what a batch needs, or not every line was drawn.
        ServiceError: what the service said.
    """
    lines: list[bytes] = []
    taken = set()
    for number, line in read_prompts(prompts, options):
        # Where it stands in the file, so that the service speaks of the same line 5.
        lines += [b""] * (number - 1 - len(lines)) + [json.dumps(line).encode()]
        taken.add(_safe(str(line.get("custom_id"))))
    try:
        _draw(client, b"\n".join(lines), prompts, out, taken, cancel=cancel)
    except OSError as error:
        raise BatchRefused(f"cannot write to {out}: {error}. Choose another folder with -o.") from error


def _draw(client: FluidClient, lines: bytes, prompts: Path, out: Path, taken: Set[str], *, cancel: bool) -> None:
    batch_id = _begin(client, lines, prompts, out)
    if cancel:
        client.cancel_batch(batch_id)
    batch = client.batch(batch_id)
    fetched_at = time.monotonic()
    with progress.steps(f"batch {batch_id}", batch["request_counts"]["total"]) as bar:
        while batch["status"] not in OVER:
            time.sleep(POLL_S)
            batch = client.batch(batch_id)
            counts = batch["request_counts"]
            bar.total = counts["total"]
            bar.update(counts["completed"] + counts["failed"] - bar.n)
            if time.monotonic() - fetched_at > FETCH_EVERY_S:
                _fetch(client, batch_id, out, taken)
                fetched_at = time.monotonic()
    if batch["errors"]:
        (out / STATE).unlink()
        raise BatchRefused(f"{prompts}: {batch['errors']['data'][0]['message']}")
    saved = _fetch(client, batch_id, out, taken)
    failed = _errors(client, batch_id, out)
    told = f", {failed} lines failed: {out / 'errors.jsonl'}" if failed else ""
    print(f"{batch['status']}: {saved} pictures in {out}{told}")
    if cancel and batch["status"] == "cancelled":  # as was asked
        return
    if failed or batch["status"] != "completed":
        missing = len(taken) - batch["request_counts"]["completed"]
        raise BatchRefused(
            f"the batch is {batch['status']}; {missing} of {len(taken)} lines were not drawn. "
            "Another folder with -o begins anew."
        )


def read_prompts(path: Path, options: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number in the file, line of a batch), from .txt (a prompt on each line), or JSON lines of parameters or of whole
    batch lines."""
    try:
        # By line feeds alone: U+2028 and its like may stand inside a prompt.
        every = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BatchRefused(f"cannot read {path}: {error}") from error
    texts = [(number, text) for number, text in enumerate(every, 1) if text.strip()]
    if not 1 <= len(texts) <= MAX_LINES:
        raise BatchRefused(f"{path} has {len(texts)} lines; a batch has 1 to {MAX_LINES}.")
    for count, (number, text) in enumerate(texts, 1):
        line: Any = {"prompt": text.strip()}
        if path.suffix != ".txt":
            try:
                line = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise BatchRefused(
                    f"{path}, line {number} is not JSON: {error}. Plain prompts go into a .txt."
                ) from error
        if not isinstance(line, dict):
            raise BatchRefused(f'{path}, line {number} must be an object, for example {{"prompt": "a cat"}}.')
        if "body" not in line:
            line = {"custom_id": f"{count:05d}", "body": line}
        if not isinstance(line["body"], dict):
            raise BatchRefused(f"{path}, line {number}: 'body' must be an object of parameters.")
        yield number, line | {"body": options | line["body"]}


def _begin(client: FluidClient, lines: bytes, prompts: Path, out: Path) -> str:
    """The id of the folder's batch; made now if it has none."""
    digest = hashlib.sha256(lines).hexdigest()
    state = out / STATE
    if state.exists():
        known = json.loads(state.read_text())
        if known["sha256"] != digest:
            raise BatchRefused(f"{out} belongs to another batch ({known['batch_id']}); choose another folder with -o.")
        return str(known["batch_id"])
    out.mkdir(parents=True, exist_ok=True)
    part = state.with_suffix(".part")
    part.touch()  # who cannot write here should hear of it before anything is drawn
    batch = client.submit_batch(lines, prompts.name)
    part.write_text(json.dumps({"batch_id": batch["id"], "sha256": digest}))
    part.rename(state)
    return str(batch["id"])


def _fetch(client: FluidClient, batch_id: str, out: Path, taken: Set[str]) -> int:
    """Save what is not on disk yet; how many pictures are there now. `taken`: the names of all lines."""
    count = 0
    for line in client.batch_results(batch_id):
        answer = line["response"]["body"]
        for i, picture in enumerate(answer["data"]):
            count += 1
            name = _safe(line["custom_id"])
            if len(answer["data"]) > 1:
                name = _numbered(name, i, taken)
            target = out / f"{name}.{answer['output_format']}"
            if not target.exists():
                part = target.with_suffix(".part")
                part.write_bytes(base64.b64decode(picture["b64_json"]))
                part.rename(target)  # a file that is there is whole
    return count


def _errors(client: FluidClient, batch_id: str, out: Path) -> int:
    failed = list(client.batch_results(batch_id, errors=True))
    if failed:
        (out / "errors.jsonl").write_text("".join(json.dumps(line) + "\n" for line in failed))
    return len(failed)


def _numbered(name: str, index: int, taken: Set[str]) -> str:
    """Of one picture of several; the second of "a" must not take the place of a line that is called "a-1"."""
    plain = f"{name}-{index}"
    return plain if plain not in taken else f"{plain}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def _safe(name: str) -> str:
    """A file name that nobody can lead out of the folder with; two ids never share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100]
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return plain if plain == name else f"{plain}-{digest[:8]}"
