"""`fluid batch`: generate a file of prompts into a folder of images, through a running service; resumable."""

import argparse
import base64
import hashlib
import json
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.batch_format import MAX_LINES, OVER
from server.cli.flags import add_command, add_service_flags, given
from server.cli.progress import progress_bar
from server.client import FluidClient
from server.client.results import write_whole
from server.errors import BatchRefused, ServiceError
from server.settings import Settings

STATE = "batch.json"
OUTPUT_FORMATS = ("png", "webp", "jpeg")
STATE_FIELDS = ("batch_id", "file_id", "key")  # those that there are so far; see _start
REFUSED = (400, 404, 409, 413, 422)  # a start that will be refused again
POLL_S = 1.0
DOWNLOAD_EVERY_S = 20.0  # finished images are saved while the rest is generated
DOWNLOAD_SHARE = 10  # ... which repeats those before: at most a tenth of the time is spent on it


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "batch",
        "Generate a file of prompts into a folder of images, through a running service.",
        "PROMPTS is a .txt with one prompt per line, or a .jsonl with one object of API parameters per line.\n"
        "Lines run at low priority, behind single requests. Interrupt the command and run it again: it resumes, and\n"
        "the service keeps generating in the meantime.\n\n"
        "examples:\n  fluid batch prompts.txt -o out/\n"
        "  fluid batch prompts.jsonl -o out/ --quality high --output-format webp --model atlas-128\n"
        "  fluid batch prompts.txt -o out/ --cancel",
    )
    parser.add_argument("prompts", type=Path, metavar="PROMPTS", help=".txt or .jsonl")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the images and the batch's state")
    parser.add_argument("--quality", choices=("low", "medium", "high"), help="for lines that set none")
    parser.add_argument("--output-format", choices=OUTPUT_FORMATS, help="for lines that set none")
    parser.add_argument("--cancel", action="store_true", help="cancel the folder's batch and save what is finished")
    add_service_flags(parser)
    parser.set_defaults(run=run)


def run(settings: Settings, args: argparse.Namespace) -> None:
    """Start or resume the batch of the output folder; return when it is over and every image is saved.

    Raises:
        BatchRefused: the file or folder is unusable, or a line produced no image.
        ServiceError: the service refused or failed.
    """
    lines: list[bytes] = []
    names = set()
    for number, line in read_prompts(args.prompts, given(args, "model", "quality", "output_format")):
        # Blank lines are sent too, so that the service's errors name the line numbers of the file.
        lines += [b""] * (number - 1 - len(lines)) + [json.dumps(line).encode()]
        names.add(_file_name(str(line.get("custom_id"))))
    url, api_key = args.url or settings.base_url, args.api_key or settings.api_key
    try:
        with FluidClient(url, api_key=api_key, max_retries=8) as client:
            _run(client, b"\n".join(lines), args.prompts, args.out, names, cancel=args.cancel)
    except OSError as error:
        raise BatchRefused(f"cannot write to {args.out}: {error.strerror}. Choose another folder with -o.") from error


def _run(client: FluidClient, lines: bytes, prompts: Path, out: Path, names: Set[str], *, cancel: bool) -> None:
    if cancel and not (out / STATE).exists():
        raise BatchRefused(f"{out} holds no batch to cancel; name the folder of the one that runs with -o.")
    batch_id = _start_or_resume(client, lines, prompts, out)
    if cancel:
        client.cancel_batch(batch_id)
    batch = _wait(client, batch_id, out, names)
    if batch["errors"]:
        (out / STATE).unlink()
        raise BatchRefused(f"{prompts}: {batch['errors']['data'][0]['message']}")
    saved = _download(client, batch_id, out, names)
    failed = _save_errors(client, batch_id, out, saved.gone)
    failures = f", {failed} lines failed: {out / 'errors.jsonl'}" if failed else ""
    _save_warnings(saved.warnings, out)
    print(f"{batch['status']}: {saved.images} images in {out}{failures}")
    if cancel and batch["status"] == "cancelled":
        return
    if failed or batch["status"] != "completed":
        missing = len(names) - batch["request_counts"]["completed"] + len(saved.gone)
        raise BatchRefused(
            f"the batch is {batch['status']}; {missing} of {len(names)} lines produced no image. "
            "To start over, choose another folder with -o."
        )


def _wait(client: FluidClient, batch_id: str, out: Path, names: Set[str]) -> dict[str, Any]:
    """Show progress and save finished images until the batch is over; return its object."""
    batch = client.batch(batch_id)
    downloaded_at, took_s = time.monotonic(), 0.0
    with progress_bar(f"batch {batch_id}", batch["request_counts"]["total"], "line") as bar:
        while batch["status"] not in OVER:
            time.sleep(POLL_S)
            batch = client.batch(batch_id)
            counts = batch["request_counts"]
            bar.total = counts["total"]
            bar.update(counts["completed"] + counts["failed"] - bar.n)
            began = time.monotonic()
            if began - downloaded_at > max(DOWNLOAD_EVERY_S, DOWNLOAD_SHARE * took_s):
                _download(client, batch_id, out, names)
                downloaded_at = time.monotonic()
                took_s = downloaded_at - began
    return batch


def read_prompts(path: Path, options: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, batch line) from a .txt of prompts, or JSON Lines of parameters or of whole batch lines."""
    try:
        # Split at line feeds only: U+2028 and similar characters may occur inside a prompt.
        rows = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BatchRefused(f"cannot read {path}: {getattr(error, 'strerror', error)}.") from error
    texts = [(number, text) for number, text in enumerate(rows, 1) if text.strip()]
    if not 1 <= len(texts) <= MAX_LINES:
        raise BatchRefused(f"{path} has {len(texts)} lines; a batch has 1 to {MAX_LINES}.")
    for count, (number, text) in enumerate(texts, 1):
        line: Any = {"prompt": text.strip()} if path.suffix == ".txt" else _parse_line(path, number, text)
        if not isinstance(line, dict):
            raise BatchRefused(f'{path}, line {number} must be an object, for example {{"prompt": "a cat"}}.')
        if "body" not in line:
            line = {"custom_id": f"{count:05d}", "body": line}
        if not isinstance(line["body"], dict):
            raise BatchRefused(f"{path}, line {number}: 'body' must be an object of parameters.")
        yield number, line | {"body": options | line["body"]}


def _parse_line(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BatchRefused(
            f"{path}, line {number} is not JSON: {error}. A file of plain prompts must be called .txt."
        ) from error


def _start_or_resume(client: FluidClient, lines: bytes, prompts: Path, out: Path) -> str:
    """Return the id of the folder's batch, and submit it first if there is none."""
    digest = hashlib.sha256(lines).hexdigest()
    state = out / STATE
    known = _read(state) if state.exists() else {"sha256": digest}
    if known["sha256"] != digest:
        raise BatchRefused(f"{out} belongs to another batch ({known.get('batch_id')}); choose another folder with -o.")
    if "batch_id" not in known:
        out.mkdir(parents=True, exist_ok=True)
        state.with_name(f"{STATE}.part").touch()  # an unwritable folder must fail before the batch is submitted
        batch = _start_again(client, state, known) or _start(client, lines, prompts, state, known)
        known = {"batch_id": batch["id"], "sha256": digest}
        _write(state, known)
    return str(known["batch_id"])


def _start(client: FluidClient, lines: bytes, prompts: Path, state: Path, known: dict[str, str]) -> dict[str, Any]:
    """Upload the lines and start their batch. The state says with which key, in case this process is killed here."""
    file_id, key = client.upload_batch(lines, prompts.name), str(uuid.uuid4())
    _write(state, known | {"file_id": file_id, "key": key})
    return _start_once(client, state, file_id, key)


def _start_once(client: FluidClient, state: Path, file_id: str, key: str) -> dict[str, Any]:
    try:
        return client.start_batch(file_id, key)
    except ServiceError as error:
        if error.status in REFUSED:  # other prompts may have the folder
            state.unlink()
        raise  # any other failure leaves open whether it has started, which the key will tell


def _start_again(client: FluidClient, state: Path, known: dict[str, str]) -> dict[str, Any] | None:
    """The batch that a killed process has started or was about to start; None if its file has expired."""
    if not {"file_id", "key"} <= known.keys():
        return None
    try:
        return _start_once(client, state, known["file_id"], known["key"])
    except ServiceError as error:
        if error.status != 404:
            raise
    return None


def _read(state: Path) -> dict[str, str]:
    try:
        known = json.loads(state.read_bytes())
        return {"sha256": known["sha256"]} | {name: str(known[name]) for name in STATE_FIELDS if name in known}
    except (ValueError, KeyError, TypeError) as error:
        raise BatchRefused(f"{state} is not a state of this command; choose another folder with -o.") from error


def _write(state: Path, known: dict[str, str]) -> None:
    write_whole(state, json.dumps(known).encode())


@dataclass
class Saved:
    """What the results of a batch have come to.

    Attributes:
        images: number of them on disk.
        gone: lines whose images are not kept any more, and are not on disk.
        warnings: of lines that have some, by custom_id.
    """

    images: int = 0
    gone: list[dict[str, Any]] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)


def _download(client: FluidClient, batch_id: str, out: Path, names: Set[str]) -> Saved:
    """Save finished images that are not on disk yet. `names`: the files of all lines."""
    found = Saved()
    for line in client.batch_results(batch_id):
        name, body = _file_name(line["custom_id"]), line["response"]["body"]
        if line["response"]["status_code"] != 200:
            stems = (name, _numbered(name, 0, names))
            saved = any((out / f"{stem}.{form}").exists() for stem in stems for form in OUTPUT_FORMATS)
            found.gone += [] if saved else [line]
            continue
        if body.get("warnings"):
            found.warnings[line["custom_id"]] = body["warnings"]
        for i, image in enumerate(body["data"]):
            found.images += 1
            stem = name if len(body["data"]) == 1 else _numbered(name, i, names)
            target = out / f"{stem}.{body['output_format']}"
            if not target.exists():
                write_whole(target, base64.b64decode(image["b64_json"]))
    return found


def _save_warnings(warnings: Mapping[str, list[str]], out: Path) -> None:
    """Write the warnings of all lines to a file, and tell of it with the first one."""
    if not warnings:
        return
    file = out / "warnings.jsonl"
    lines = [{"custom_id": custom_id, "warnings": told} for custom_id, told in warnings.items()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = next(iter(warnings))
    count = f"{len(warnings)} line{'s have' if len(warnings) > 1 else ' has'} warnings: {file}"
    print(f"{count}. {first}: {warnings[first][0]}", file=sys.stderr)


def _save_errors(client: FluidClient, batch_id: str, out: Path, gone: list[dict[str, Any]]) -> int:
    failed = [*client.batch_results(batch_id, errors=True), *gone]
    if failed:
        (out / "errors.jsonl").write_text("".join(json.dumps(line) + "\n" for line in failed))
    return len(failed)


def _numbered(name: str, index: int, names: Set[str]) -> str:
    """Name one of several images so that image 1 of line "a" does not overwrite the image of a line called "a-1"."""
    plain = f"{name}-{index}"
    return plain if plain not in names else f"{plain}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def _file_name(custom_id: str) -> str:
    """Return a file name that cannot escape the folder; different ids get different names."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", custom_id).lstrip(".")[:100]
    digest = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).hexdigest()
    return plain if plain == custom_id else f"{plain}-{digest[:8]}"
