"""API keys: stored as hashes, in a file that is read again when it changes.

A line of the file is a name, the key's hash, and limits that differ from the service's own:

    # name        hash                   limits
    alice         sha256:9f86d081...     rate_limit=120 max_jobs=8
    old-laptop    sha256:60303ae2...     disabled

`fluid keys new NAME` prints a key and its line.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import re
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from server.errors import ConfigError, InvalidApiKey, KeyNameRefused
from server.jobs import PRIORITIES
from server.settings import Settings

log = logging.getLogger(__name__)
KEY_PREFIX = "fl-"
RELOAD_INTERVAL_S = 1.0  # between two checks of whether the file has changed
_LIMIT = re.compile(r"[a-z_]{1,20}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a key, with their limits. `ANONYMOUS`, without name or limits, on a service without keys."""

    name: str = ""
    rate_limit: int = 0  #: requests per minute that generate or upload; 0: no limit
    max_jobs: int = 0  #: jobs that wait or run at the same time; 0: no limit
    max_priority: str = "normal"  #: the highest class of their jobs; high is granted key by key
    disabled: bool = False


ANONYMOUS = Caller(max_priority=PRIORITIES[0])


def new_key() -> str:
    """Return 256 random bits as text: too many to guess, so a plain hash protects a key as well as a slow one."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """Return a key's hash in the form that the key file holds."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def print_new_key(name: str) -> None:
    """Print a new key for its holder (on standard error), and its line for the key file (on standard output).

    Raises:
        KeyNameRefused: the key file cannot hold this name.
    """
    if not _NAME.fullmatch(name):
        raise KeyNameRefused(f"{name[:80]!r} is not a valid key name: use 1 to 64 letters, digits, '.', '_' or '-'.")
    key = new_key()
    print(f"The key of {name}, shown only now:\n  {key}\nIts line for FLUID_API_KEYS_FILE:", file=sys.stderr)
    print(f"{name} {hash_key(key)}")


def parse_keys(text: str, default: Caller, where: str) -> dict[str, Caller]:
    """Parse lines, which end with a newline or a semicolon, into {hash: caller}.

    Raises:
        ConfigError: a line is invalid; the message names it and what is wrong with it.
    """
    found: dict[str, Caller] = {}
    for number, line in enumerate(re.split(r"[\n;]", text), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            name, digest, *limits = words
            if not _NAME.fullmatch(name) or not _HASH.fullmatch(digest):
                raise ValueError("it must begin with a name (letters, digits, '.', '_', '-') and sha256: and 64 digits")
            if digest in found:
                raise ValueError(f"{found[digest].name!r} has the same key")
            found[digest] = _with_limits(replace(default, name=name), limits)
        except ValueError as error:  # the line itself is not shown: it may contain a key
            raise ConfigError(f"{where}, line {number}: {error}. `fluid keys new NAME` prints a valid line.") from error
    return found


def _with_limits(caller: Caller, words: list[str]) -> Caller:
    for number, word in enumerate(words, 3):
        name, _, value = word.partition("=")
        if word == "disabled":
            caller = replace(caller, disabled=True)
        elif name == "rate_limit" and value.isdecimal():
            caller = replace(caller, rate_limit=int(value))
        elif name == "max_jobs" and value.isdecimal():
            caller = replace(caller, max_jobs=int(value))
        elif name == "max_priority" and value in PRIORITIES:
            caller = replace(caller, max_priority=value)
        else:
            valid = f"rate_limit=NUMBER, max_jobs=NUMBER, max_priority={'|'.join(PRIORITIES)}, disabled"
            shown = repr(name) if _LIMIT.fullmatch(name) else f"word {number}"  # a key may have slipped in
            raise ValueError(f"{shown} is not one of {valid}")
    return caller


def _expand(path: str) -> Path:
    """The path with ~ replaced. Raises ConfigError where there is no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"FLUID_API_KEYS_FILE={path!r}: there is no home folder (HOME). Give a whole path."
        ) from error


def _decode(data: bytes) -> str:
    """Text of a key file. Editors of Windows begin it with a byte order mark, and its shell writes UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


class KeyRing:
    """All keys of FLUID_API_KEYS and FLUID_API_KEYS_FILE. If the file becomes invalid, the last valid keys stay.

    Raises:
        ConfigError: the keys are invalid at startup, or limits are set without keys.
    """

    def __init__(self, settings: Settings) -> None:
        self._default = Caller(rate_limit=settings.rate_limit, max_jobs=settings.max_jobs)
        self._inline = parse_keys(settings.api_keys, self._default, "FLUID_API_KEYS")
        self._file = _expand(settings.api_keys_file) if settings.api_keys_file else None
        self._file_version: tuple[int, ...] = ()
        self._next_check_at = 0.0
        self._logged_error = ""
        self._from_file: Mapping[str, Caller] = {}
        if self._file is not None:
            self._load(self._file)
        self.required = settings.wants_keys
        if (settings.rate_limit or settings.max_jobs) and not self.required:
            raise ConfigError("FLUID_RATE_LIMIT and FLUID_MAX_JOBS limit API keys: set FLUID_API_KEYS_FILE too.")

    def caller(self, authorization: str) -> Caller:
        """Return the caller whose key the Authorization header carries.

        Raises:
            InvalidApiKey: it carries none, or an unknown one.
        """
        if not self.required:
            return ANONYMOUS
        self._reload_if_due()
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise InvalidApiKey("This service requires an API key: send the header 'Authorization: Bearer KEY'.")
        digest = hash_key(key.strip())  # looked up by hash, so timing reveals nothing about the key
        caller = self._from_file.get(digest) or self._inline.get(digest)
        if caller is None:
            raise InvalidApiKey("Unknown API key. Ask the operator of this service for one.")
        return caller

    def _reload_if_due(self) -> None:
        """Reload the file at most once per RELOAD_INTERVAL_S, so that keys change without a restart."""
        if self._file is None or time.monotonic() < self._next_check_at:
            return
        self._next_check_at = time.monotonic() + RELOAD_INTERVAL_S
        try:
            self._load(self._file)
            self._logged_error = ""
        except ConfigError as error:
            if str(error) != self._logged_error:
                log.error("%s The last valid keys stay in use.", error)
            self._logged_error = str(error)

    def _load(self, file: Path) -> None:
        """Read the file if it has changed since the last time."""
        try:
            found = file.stat()
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
            if version == self._file_version:
                return
            text = _decode(file.read_bytes())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"FLUID_API_KEYS_FILE: {file} cannot be read: {error}.") from error
        self._from_file = parse_keys(text, self._default, str(file))
        # Only now: a file that could not be read, or was half written, is read again although its times stay the same.
        # The stamp is from before the reading: what is written meanwhile is read the next time.
        self._file_version = version
        log.info("%s: %d keys", file, len(self._from_file))
