"""Batch files in OpenAI's format: one {"custom_id": ..., "method": "POST", "url": ..., "body": {...}} per line."""

import io
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from server import json_text

MAX_LINES = 50_000
URL = "/v1/images/generations"
EDITS_URL = "/v1/images/edits"
#: Terminal states of a batch.
OVER = ("completed", "failed", "expired", "cancelled")
RESULTS, FAILURES = "file-out-", "file-err-"


def results_file(batch_id: str, *, errors: bool = False) -> str:
    """Id of the output or error file, which can be read before the batch is over."""
    return (FAILURES if errors else RESULTS) + batch_id


class LineError(Exception):
    """The file as a whole is rejected; `line` is the first invalid one, from 1, or None."""

    def __init__(self, message: str, code: str, line: int | None = None) -> None:
        super().__init__(message)
        self.code, self.line = code, line


@dataclass(frozen=True, slots=True)
class Line:
    custom_id: str
    body: dict[str, Any]
    error: str = ""  #: why this line fails alone, if nothing can hold its body


def index_lines(data: bytes, url: str = URL, named: set[str] | None = None) -> "array[int]":
    """Check every line of a batch for `url`, and return the offset of each, with that of the end. Ids of files that a
    line for edits names as images are added to `named`.

    Lines are read from the file when their turn comes. An invalid body is not an error here: later it fails its own
    request only.

    Raises:
        LineError: the file is not a batch file.
    """
    # Read line by line and count before keeping any: 32 MiB of short lines take 600 MiB as Python strings.
    count = sum(1 for raw in _each(data) if raw.strip())
    if not count:
        raise LineError("The file has no lines.", "empty_file")
    if count > MAX_LINES:
        raise LineError(f"The file has {count} lines; at most {MAX_LINES} are allowed.", "too_many_lines")
    offsets, seen, end = array("I"), set(), len(data) - len(_each(data).getbuffer())
    for number, raw in enumerate(_each(data), 1):
        begin, end = end, end + len(raw)
        if not raw.strip():
            continue
        try:
            text = json_text.decode_utf8(raw)
        except json_text.JsonError as error:
            raise LineError(f"Line {number} {error}.", "invalid_encoding", number) from error
        line = _parse(text, number, url)
        if line.custom_id in seen:
            raise LineError(
                f"Line {number}: custom_id {line.custom_id!r} was used before.", "duplicate_custom_id", number
            )
        seen.add(line.custom_id)
        if named is not None and url == EDITS_URL:
            named.update(_files_in(line.body))
        offsets.append(begin)
    offsets.append(end)
    return offsets


def _files_in(body: Mapping[str, Any]) -> Iterator[str]:
    """The file ids of a line: two at most, as a valid line has one image and one mask, however long its lists are."""
    images = body.get("images")
    one = images[0] if isinstance(images, list) and len(images) == 1 else None
    for each in (body.get("image") or one, body.get("mask")):
        text = (each.get("file_id") or each.get("image_url")) if isinstance(each, dict) else each
        if isinstance(text, str) and text.startswith("file-") and len(text) <= 100:
            yield text


def parse_line(text: str) -> Line:
    """Parse a line of a file that was checked, with the blank lines behind it.

    Raises:
        LineError: it is not a line of a batch file.
    """
    return _parse(text.strip(), 1, None)


def _each(data: bytes) -> io.BytesIO:
    """Iterate over lines, which end at a line feed alone: str.splitlines also splits at U+2028, valid inside JSON."""
    return io.BytesIO(data.removeprefix(b"\xef\xbb\xbf"))


def _parse(text: str, number: int, url: str | None) -> Line:
    """Parse one line; `url` is the only one allowed, None for a line that was checked before."""
    error = ""
    try:
        raw = json_text.parse(text)
    except json_text.LongNumberError as long:  # the rest of the line is sound, so only its own request fails
        error = f"The body {long}."
        raw = json_text.parse(text, long_numbers=True)
    except json_text.JsonError as other:
        raise LineError(f"Line {number} {other}.", "invalid_json_line", number) from other
    if json_text.may_be_halved(text) and json_text.is_halved(raw):
        raise LineError(
            f"Line {number} contains an unpaired surrogate; send valid Unicode.", "invalid_encoding", number
        )
    if not isinstance(raw, dict) or not isinstance(raw.get("body"), dict):
        raise LineError(f"Line {number} must be an object with a 'body'.", "invalid_line", number)
    custom_id = raw.get("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= 256:
        raise LineError(f"Line {number} needs a 'custom_id' of 1 to 256 characters.", "invalid_custom_id", number)
    if url is not None and (raw.get("method", "POST") != "POST" or raw.get("url", url) != url):
        raise LineError(f"Line {number}: only POST {url} can be in this batch.", "invalid_url", number)
    return Line(custom_id, {} if error else raw["body"], error)


def not_for_lines(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """(parameter, reason) of the first parameter that is valid in a request but not in a line of a batch.

    Values that change nothing, like stream=false, are allowed.
    """
    if body.get("priority") not in (None, "low"):
        return "priority", "'priority' is not allowed in a batch line: its priority is always low. Leave it out."
    if body.get("response_format") == "url":
        return "response_format", "'response_format' url is not allowed in a batch line: results hold b64_json."
    for name, why in (
        ("stream", "the caller does not wait for them"),
        ("partial_images", "the caller does not wait for previews"),
        ("webhook", "ask GET /v1/batches/{batch_id} instead"),
    ):
        if body.get(name):
            return name, f"'{name}' is not allowed in a batch line: {why}. Leave it out."
    return None
