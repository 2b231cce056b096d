"""Decoding of records that lie in Redis, where another version of the service may have written them.

Fields that this version does not know are ignored. A record that it cannot read is skipped in a list and logged once;
a record that was asked for by its id raises UnreadableRecord.
"""

import json
import logging
import math
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from server.errors import UnreadableRecord

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
#: What decoding raises when a field is missing, has another type, or is no JSON. RecursionError: JSON nested too deep.
UNREADABLE = (
    TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, UnreadableRecord,
)  # fmt: skip

#: How often records of each kind were skipped in this process; /metrics shows it.
skipped: Counter[str] = Counter()


def read_json(text: str | bytes) -> Any:
    """Parse a record's JSON. Raises ValueError also for NaN and Infinity, which no response could hold."""
    return _DECODER.decode(text if isinstance(text, str) else text.decode())


def finite(text: str) -> float:
    """Raises ValueError for text that is no finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)  # json.loads would make one for each text


def decode(cls: type[T], raw: Mapping[str, Any]) -> T:
    """Build a dataclass from a mapping, without the keys that it does not have.

    Raises:
        TypeError: `raw` is no mapping, a required field is missing, or a value has the wrong type.
    """
    if not isinstance(raw, Mapping):
        raise TypeError(f"{cls.__name__} is an object, not {type(raw).__name__}")
    hints = _hints(cls)  # type: ignore[arg-type]  # mypy takes a generic type for unhashable
    values = {name: raw[name] for name in hints if name in raw}
    for name, value in values.items():
        hint, exact = hints[name]
        fits = type(value) in exact and (type(value) is not float or math.isfinite(value))
        if not fits and not _fits(value, hint):
            raise TypeError(f"{cls.__name__}.{name} cannot be {type(value).__name__}")
    return cls(**values)


def shallow(record: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, uncopied: `asdict` copies every value deeply, at ten times the cost."""
    return {name: getattr(record, name) for name in _hints(type(record))}  # type: ignore[arg-type]  # as in decode


def readable(what: str, raw: Iterable[R], read: Callable[[R], T]) -> Iterator[T]:
    """Decode each record; one that cannot be read is skipped and logged."""
    for each in raw:
        try:
            yield read(each)
        except UNREADABLE as error:
            skip(what, error)


def skip(what: str, error: Exception) -> None:
    """Count that a record was skipped, and log it: once, because lists are read many times a second."""
    skipped[what.removeprefix("a ").removeprefix("the ")] += 1
    _log_once(what, describe(error))


def describe(error: Exception) -> str:
    """Say why a record cannot be read. Most texts stay out of it: they quote the record, which may hold a prompt."""
    quotes = not isinstance(error, (TypeError, UnreadableRecord))
    return type(error).__name__ if quotes else f"{type(error).__name__}: {error}"[:200]


@lru_cache(maxsize=1024)
def _log_once(what: str, reason: str) -> None:
    log.warning(
        "skipping %s in Redis that this version cannot read (%s); another version may have written it", what, reason
    )


@lru_cache(maxsize=64)
def _hints(cls: Any) -> dict[str, tuple[Any, frozenset[type]]]:
    """The annotation of each field, and the types of which every value fits it, if it is finite."""
    known = get_type_hints(cls)
    return {field.name: (known[field.name], _exact(known[field.name])) for field in fields(cls)}


def _exact(hint: Any) -> frozenset[type]:
    if get_origin(hint) in (Union, types.UnionType):
        return frozenset[type]().union(*map(_exact, get_args(hint)))
    return frozenset({int, float} if hint is float else {hint} if hint in (int, str, bool, type(None)) else ())


def _fits(value: Any, hint: Any) -> bool:
    """True if a value decoded from JSON has the annotated type; a whole number is a float too, a bool is no number."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        inner = args[:1] * len(value) if args[-1:] == (...,) and isinstance(value, list | tuple) else args
        return (
            isinstance(value, list | tuple)
            and len(value) == len(inner)
            and all(_fits(v, a) for v, a in zip(value, inner, strict=True))
        )
    if origin is not None:  # a mapping
        return isinstance(value, Mapping) and all(_fits(v, args[-1]) for v in value.values())
    if hint in (int, float):
        is_number = isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
        return is_number and not (isinstance(value, float) and not math.isfinite(value))
    return isinstance(value, hint)
