"""Decode JSON from callers, and name the real cause when that fails."""

import json
import re
from typing import Any

#: No parameter nests more than two deep; Python's own limit depends on the depth of the call stack.
MAX_DEPTH = 16
#: Python converts no longer text to an integer, because that takes quadratic time.
MAX_DIGITS = 4300
#: For a message alone. All runs but the last are bounded: two unbounded ones beside each other take quadratic time.
_LONG_NUMBER = re.compile(rf'"([^"\\\\]{{1,64}})"\s{{0,16}}:\s{{0,16}}\[?\s{{0,16}}-?[0-9]{{{MAX_DIGITS + 1},}}')


class JsonError(ValueError):
    """The text cannot be used; the message is a clause whose subject is the text."""


class LongNumberError(JsonError):
    """A number has more digits than Python converts."""


def decode_utf8(data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        JsonError: the bytes are something else.
    """
    if data.startswith(b"\x1f\x8b"):
        raise JsonError("is compressed with gzip; send it uncompressed")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bom = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        guess = "UTF-16" if bom else "Latin-1 or Windows-1252"
        raise JsonError(
            f"is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}. It looks like {guess}; send UTF-8"
        ) from error


def parse(text: str, *, long_numbers: bool = False) -> Any:
    """Parse JSON.

    Args:
        long_numbers: read integers of more than MAX_DIGITS digits as 0.

    Raises:
        JsonError: the text is no JSON, or nests too deep.
        LongNumberError: it has an integer of more than MAX_DIGITS digits.
    """
    try:
        value = json.loads(text, parse_int=_int_or_zero if long_numbers else None)
    except json.JSONDecodeError as error:
        raise JsonError(f"is not valid JSON: {error}") from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # the only other one: Python refuses to convert very long integers
        found = _LONG_NUMBER.search(text)
        where = f" in '{found[1]}'" if found else ""
        raise LongNumberError(
            f"has a number of more than {MAX_DIGITS} digits{where}; no parameter takes that"
        ) from error
    if is_deep(value, MAX_DEPTH):
        raise _too_deep()
    return value


def may_be_halved(text: str) -> bool:
    """False if nothing in this JSON text can be halved: a cheap test ahead of `is_halved`."""
    return "\\ud" in text or "\\uD" in text


def is_halved(value: Any) -> bool:
    """True if a string or a name in a parsed value has an unpaired surrogate, which Python parses but cannot encode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def is_deep(value: Any, left: int) -> bool:
    """Return true if a value nests more than `left` levels deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(each, (dict, list)) and (left == 1 or is_deep(each, left - 1)) for each in inner)


def _int_or_zero(digits: str) -> int:
    return int(digits) if len(digits.lstrip("-")) <= MAX_DIGITS else 0


def _too_deep() -> JsonError:
    return JsonError(f"nests more than {MAX_DEPTH} levels deep; no request does")
