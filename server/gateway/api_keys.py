"""Who may call: API keys, kept as hashes, in a file that is read again when it changes.

A line of the file is a name, the key's hash, and limits that differ from the service's own:

    # name        hash                   limits
    alice         sha256:9f86d081...     rate_limit=120 max_jobs=8
    old-laptop    sha256:60303ae2...     disabled

`fluid keys new NAME` prints a key and its line.
"""

from __future__ import annotations

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
from server.settings import Settings

log = logging.getLogger(__name__)
PREFIX = "fl-"
LOOK_S = 1.0  # between two looks at the file
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a key. Nobody in particular, with neither name nor limits, where there are no keys."""

    name: str = ""
    rate_limit: int = 0  #: requests a minute that draw or upload; 0: as many as he likes
    max_jobs: int = 0  #: jobs that may wait or run at a time; 0: as many as he likes
    disabled: bool = False


NOBODY = Caller()


def new_key() -> str:
    """256 random bits: nobody finds them by trying, so that a plain hash keeps them as well as a slow one."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def make(name: str) -> None:
    """Print a new key for people (standard error), and its line for the file (standard output).

    Raises:
        KeyNameRefused: the name could not stand in the file.
    """
    if not _NAME.fullmatch(name):
        raise KeyNameRefused(f"{name[:80]!r} is no name for a key: 1 to 64 letters, digits, '.', '_' or '-'.")
    key = new_key()
    print(f"The key of {name}, shown only now:\n  {key}\nIts line for FLUID_API_KEYS_FILE:", file=sys.stderr)
    print(f"{name} {hashed(key)}")


def parse_keys(text: str, default: Caller, where: str) -> dict[str, Caller]:
    """{hash: its caller}; lines end with a newline or a semicolon.

    Raises:
        ConfigError: names the line and what is wrong with it.
    """
    found: dict[str, Caller] = {}
    for number, line in enumerate(re.split(r"[\n;]", text), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            name, digest, *limits = words
            if not _NAME.fullmatch(name) or not _HASH.fullmatch(digest):
                raise ValueError("it begins with a name (letters, digits, '.', '_', '-') and sha256: with 64 digits")
            if digest in found:
                raise ValueError(f"{found[digest].name!r} has the same key")
            found[digest] = _limited(replace(default, name=name), limits)
        except ValueError as error:  # the line itself is not shown: somebody may have put a key into it
            raise ConfigError(f"{where}, line {number}: {error}. `fluid keys new NAME` prints a right line.") from error
    return found


def _limited(caller: Caller, words: list[str]) -> Caller:
    for word in words:
        name, _, value = word.partition("=")
        if word == "disabled":
            caller = replace(caller, disabled=True)
        elif name == "rate_limit" and value.isdecimal():
            caller = replace(caller, rate_limit=int(value))
        elif name == "max_jobs" and value.isdecimal():
            caller = replace(caller, max_jobs=int(value))
        else:
            raise ValueError(f"{word[:30]!r} is none of rate_limit=NUMBER, max_jobs=NUMBER and disabled")
    return caller


class KeyRing:
    """All keys of FLUID_API_KEYS and FLUID_API_KEYS_FILE. A broken file leaves the keys that were good.

    Raises:
        ConfigError: at the start nothing is good yet.
    """

    def __init__(self, settings: Settings) -> None:
        self._default = Caller(rate_limit=settings.rate_limit, max_jobs=settings.max_jobs)
        self._inline = parse_keys(settings.api_keys, self._default, "FLUID_API_KEYS")
        self._file = Path(settings.api_keys_file).expanduser() if settings.api_keys_file else None
        self._stamp: tuple[int, ...] = ()
        self._look_at = 0.0
        self._complained = ""
        self._from_file: Mapping[str, Caller] = {}
        if self._file is not None:
            self._refresh(self._file)
        self.required = settings.wants_keys
        if (settings.rate_limit or settings.max_jobs) and not self.required:
            raise ConfigError("FLUID_RATE_LIMIT and FLUID_MAX_JOBS are limits of keys: set FLUID_API_KEYS_FILE too.")

    def caller(self, authorization: str) -> Caller:
        """Whose key the header carries.

        Raises:
            InvalidApiKey: none that is known.
        """
        if not self.required:
            return NOBODY
        self._look()
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise InvalidApiKey("This service wants an API key: send the header 'Authorization: Bearer KEY'.")
        digest = hashed(key.strip())  # found by its hash, so that how long the search takes tells nothing of the key
        caller = self._from_file.get(digest) or self._inline.get(digest)
        if caller is None:
            raise InvalidApiKey("Nobody has this API key. Ask the operator of this service for one.")
        return caller

    def _look(self) -> None:
        """Keys come and go without a restart."""
        if self._file is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_S
        try:
            self._refresh(self._file)
            self._complained = ""
        except ConfigError as error:
            if str(error) != self._complained:
                log.error("%s The keys that were good go on.", error)
            self._complained = str(error)

    def _refresh(self, file: Path) -> None:
        """Read it if it is another than the last time."""
        try:
            found = file.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return
            self._stamp = stamp  # of before reading: what is written meanwhile is read the next time
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"FLUID_API_KEYS_FILE: {file} cannot be read: {error}.") from error
        self._from_file = parse_keys(text, self._default, str(file))
        log.info("%s: %d keys", file, len(self._from_file))
