"""Parsing batch files: what is a line, and which error rejects the whole file."""

import json
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.batch_format import MAX_LINES, Line, LineError, index_lines, parse_line

URL = "/v1/images/generations"


def parse_lines(data: bytes) -> list[Line]:
    """Read each line of the file as a batch does, by its offset."""
    return [parse_line(data[start:end].decode()) for start, end in pairwise(index_lines(data))]


def jsonl(*bodies: dict[str, Any]) -> bytes:
    lines = [{"custom_id": f"line-{i}", "method": "POST", "url": URL, "body": body} for i, body in enumerate(bodies)]
    return "\n".join(map(json.dumps, lines)).encode()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xfe", "invalid_encoding"),
        (b" \n", "empty_file"),
        (b"[]", "invalid_line"),
        (b'{"body": {}}', "invalid_custom_id"),
        (b'{"custom_id": "a", "body": {}, "url": "/v1/chat"}', "invalid_url"),
        (jsonl({}) + b"\n" + jsonl({}), "duplicate_custom_id"),
        (b"x\n" * (MAX_LINES + 1), "too_many_lines"),
        (b'{"custom_id": "a", "body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json_line"),
        (b'{"custom_id": "a", "body": {"x": ' + b"[" * 300 + b"]" * 300 + b"}}", "invalid_json_line"),
        (b'{"custom_id": "\\ud800", "body": {}}', "invalid_encoding"),
        (b'{"custom_id": "a", "body": {"\\uD800": 1}}', "invalid_encoding"),
        (b'{"custom_id": "a", "body": {"style": "\\ud800"}}', "invalid_encoding"),
    ],
)
def test_a_malformed_file_is_rejected_with_its_reason(data: bytes, code: str) -> None:
    """A batch of 50,000 lines that fails without a reason costs a day. Deep nesting used to keep a batch in validating
    forever; half a surrogate pair used to block every line behind it, or cut the result file short."""
    with pytest.raises(LineError) as caught:
        parse_lines(data)
    assert caught.value.code == code


@given(data=st.binary(max_size=200))
def test_any_bytes_either_parse_or_raise_a_line_error(data: bytes) -> None:
    """No other exception may escape."""
    try:
        assert parse_lines(data)
    except LineError as error:
        assert error.code


def test_only_line_feeds_separate_lines() -> None:
    """U+2028, U+2029 and U+0085 are valid inside JSON strings and must not split a line. Blank lines count: an error in
    line 5 used to be reported for line 2."""
    text = json.dumps({"custom_id": "a", "body": {"prompt": "a\u2028b\u2029c\x85d"}}, ensure_ascii=False)
    [line] = parse_lines(b"\xef\xbb\xbf\n\r\n" + text.encode() + b"\r\n")
    assert line.body["prompt"] == "a\u2028b\u2029c\x85d"
    with pytest.raises(LineError) as caught:
        parse_lines(text.encode() + b"\n\n\n\nx")
    assert caught.value.line == 5


def test_lines_are_counted_before_they_are_stored() -> None:
    """A file of 32 MiB used to take 642 MiB before it was rejected."""
    data = b"abc\n" * (1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(LineError, match="1048576 lines"):
            parse_lines(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
