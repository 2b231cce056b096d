"""`fluid batch`: a file of prompts to a folder of pictures, through a running service; run again, it goes on."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server import progress
from server.batch_lines import MAX_LINES, OVER
from server.client import FluidClient
from server.errors import BatchRefused

STATE = "batch.json"
POLL_S = 1.0
FETCH_EVERY_S = 20.0  # pictures come to disk while the rest is drawn


def run(client: FluidClient, prompts: Path, out: Path, options: dict[str, Any], *, cancel: bool) -> None:
    """Begin, or go on with, the batch of this folder until it is over and every picture is there.

    Raises:
        BatchRefused: the file or the folder is not what a batch needs. ServiceError: what the service said.
    """
    lines = b"\n".join(json.dumps(line, ensure_ascii=False).encode() for line in read_prompts(prompts, options))
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
                _fetch(client, batch_id, out)
                fetched_at = time.monotonic()
    if batch["errors"]:
        (out / STATE).unlink()
        raise BatchRefused(f"{prompts}: {batch['errors']['data'][0]['message']}")
    saved = _fetch(client, batch_id, out)
    failed = _errors(client, batch_id, out)
    told = f", {failed} lines failed: {out / 'errors.jsonl'}" if failed else ""
    print(f"{batch['status']}: {saved} pictures in {out}{told}")


def read_prompts(path: Path, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Lines of a batch from .txt (a prompt on each line), or JSON lines of parameters or of whole batch lines."""
    try:
        texts = [text for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BatchRefused(f"cannot read {path}: {error}") from error
    if not 1 <= len(texts) <= MAX_LINES:
        raise BatchRefused(f"{path} has {len(texts)} lines; a batch has 1 to {MAX_LINES}.")
    for number, text in enumerate(texts, 1):
        line: Any = {"prompt": text.strip()}
        if path.suffix != ".txt":
            try:
                line = json.loads(text)
            except ValueError as error:
                raise BatchRefused(
                    f"{path}, line {number} is not JSON: {error}. Plain prompts go into a .txt."
                ) from error
        if not isinstance(line, dict):
            raise BatchRefused(f'{path}, line {number} must be an object, for example {{"prompt": "a cat"}}.')
        if "body" not in line:
            line = {"custom_id": f"{number:05d}", "body": line}
        yield line | {"body": options | line["body"]}


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
    batch = client.submit_batch(lines, prompts.name)
    state.write_text(json.dumps({"batch_id": batch["id"], "sha256": digest}))
    return str(batch["id"])


def _fetch(client: FluidClient, batch_id: str, out: Path) -> int:
    """Save what is not on disk yet; how many pictures are there now."""
    count = 0
    for line in client.batch_results(batch_id):
        answer = line["response"]["body"]
        for i, picture in enumerate(answer["data"]):
            count += 1
            several = f"-{i}" if len(answer["data"]) > 1 else ""
            target = out / f"{_safe(line['custom_id'])}{several}.{answer['output_format']}"
            if not target.exists():
                part = target.with_suffix(".part")
                part.write_bytes(base64.b64decode(picture["b64_json"]))
                part.rename(target)  # a file that is there is whole
    return count


def _errors(client: FluidClient, batch_id: str, out: Path) -> int:
    failed = list(client.batch_results(batch_id, errors=True))
    if failed:
        (out / "errors.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in failed))
    return len(failed)


def _safe(name: str) -> str:
    """A file name that nobody can lead out of the folder with; two ids never share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
