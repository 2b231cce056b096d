"""The lines of a batch file, as OpenAI has them: {"custom_id": ..., "method": "POST", "url": ..., "body": {...}}."""

import json
from dataclasses import asdict, dataclass
from typing import Any

MAX_LINES = 50_000
URL = "/v1/images/generations"
#: States of a batch in which nothing more happens to it.
OVER = ("completed", "failed", "expired", "cancelled")
RESULTS, FAILURES = "file-out-", "file-err-"


def results_file(batch_id: str, *, errors: bool = False) -> str:
    """The file of what succeeded, or of what failed; it can be read before the batch is over."""
    return (FAILURES if errors else RESULTS) + batch_id


class LineError(Exception):
    """The file as a whole is refused; `line` is the first wrong one, from 1, or None."""

    def __init__(self, message: str, code: str, line: int | None = None) -> None:
        super().__init__(message)
        self.code, self.line = code, line


@dataclass(frozen=True, slots=True)
class Line:
    custom_id: str
    body: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Line":
        return cls(**json.loads(text))


def parse_lines(data: bytes) -> list[Line]:
    """Every line; what is wrong inside a body is that request's own failure, later.

    Raises:
        LineError: the file is not what a batch is made of.
    """
    try:
        texts = [text for text in data.decode("utf-8-sig").splitlines() if text.strip()]
    except UnicodeDecodeError as error:
        raise LineError(f"The file is not UTF-8 (byte {error.start}).", "invalid_encoding") from error
    if not texts:
        raise LineError("The file has no lines.", "empty_file")
    if len(texts) > MAX_LINES:
        raise LineError(f"The file has {len(texts)} lines; at most {MAX_LINES} are allowed.", "too_many_lines")
    lines, seen = [], set()
    for number, text in enumerate(texts, 1):
        line = _parse(text, number)
        if line.custom_id in seen:
            raise LineError(
                f"Line {number}: custom_id {line.custom_id!r} was there before.", "duplicate_custom_id", number
            )
        seen.add(line.custom_id)
        lines.append(line)
    return lines


def _parse(text: str, number: int) -> Line:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise LineError(f"Line {number} is not JSON: {error}.", "invalid_json_line", number) from error
    if not isinstance(raw, dict) or not isinstance(raw.get("body"), dict):
        raise LineError(f"Line {number} must be an object with a 'body'.", "invalid_line", number)
    custom_id = raw.get("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= 256:
        raise LineError(f"Line {number} needs a 'custom_id' of 1 to 256 characters.", "invalid_custom_id", number)
    if raw.get("method", "POST") != "POST" or raw.get("url", URL) != URL:
        raise LineError(f"Line {number}: only POST {URL} can be batched.", "invalid_url", number)
    return Line(custom_id, raw["body"])
