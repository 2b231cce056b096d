"""How a setting is declared, described and parsed, and how settings are told apart from what Kubernetes injects."""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, field
from pathlib import Path
from typing import Any

from server.errors import SettingError

PREFIX = "FLUID_"
DEFAULT_ENGINE = "server.worker.engine.loader:load_model"
_URL = r"(tcp|udp|sctp)://\S+:\d+"
#: Name and value of each variable that Kubernetes injects for a Service named fluid or fluid-*, and Docker for a link.
_SERVICE_LINKS = (
    (re.compile(r"FLUID(_\w+)?_SERVICE_HOST"), re.compile(r"[0-9A-Fa-f:.]+")),
    (re.compile(r"FLUID(_\w+)?_SERVICE_PORT(_\w+)?"), re.compile(r"\d+")),
    (re.compile(r"FLUID(_\w+)?_PORT"), re.compile(_URL)),
    (re.compile(r"FLUID(_\w+)?_PORT_\d+_(TCP|UDP|SCTP)"), re.compile(_URL)),
    (re.compile(r"FLUID(_\w+)?_PORT_\d+_(TCP|UDP|SCTP)_PROTO"), re.compile(r"tcp|udp|sctp")),
    (re.compile(r"FLUID(_\w+)?_PORT_\d+_(TCP|UDP|SCTP)_PORT"), re.compile(r"\d+")),
    (re.compile(r"FLUID(_\w+)?_PORT_\d+_(TCP|UDP|SCTP)_ADDR"), re.compile(r"[0-9A-Fa-f:.]+")),
)


def setting(
    default: Any,
    help: str,
    *,
    group: str = "",
    unit: str = "",
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    begins: tuple[str, ...] = (),
    check: Callable[[str], str] = str,
    secret: bool = False,
) -> Any:
    """A field of Settings. One without a group is for tests only: help and documentation leave it out.

    `check` returns the value or raises ValueError with what it must be; a secret is shown in no message and no repr.
    """
    meta = {
        "help": help, "group": group, "unit": unit, "choices": choices, "at_least": at_least, "at_most": at_most,
        "begins": begins, "check": check, "secret": secret,
    }  # fmt: skip
    return field(default=default, metadata=meta, repr=not secret)


def service_links(environ: Mapping[str, str]) -> list[str]:
    """Names of the variables that Kubernetes injected for a Service named fluid or fluid-*, sorted."""
    return sorted(
        name
        for name, text in environ.items()
        if any(names.fullmatch(name) and values.fullmatch(text) for names, values in _SERVICE_LINKS)
    )


def parse(name: str, setting: "Field[Any]", text: str) -> Any:
    """The value of a setting; empty text means the default.

    Raises:
        SettingError: the value is invalid. The message shows it, unless it may hold a secret.
    """
    meta = setting.metadata
    holds_password = meta["secret"] or "@" in text
    shown = name if holds_password else f"{name}={text!r}"
    if not text.strip():
        return setting.default
    if meta["choices"] and text not in meta["choices"]:
        raise SettingError(f"{shown} is not one of: {', '.join(meta['choices'])}.")
    if meta["begins"] and not text.startswith(meta["begins"]):
        raise SettingError(f"{shown} must begin with {' or '.join(meta['begins'])}.")
    kind: Any = type(setting.default)
    if kind is str:
        try:
            return meta["check"](text)
        except ValueError as error:
            raise SettingError(f"{shown} {error}.") from None  # the cause may quote a password
    try:
        value = kind(text)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise SettingError(f"{shown} must be {wanted}, for example {setting.default}.") from error
    if value == math.inf:
        raise SettingError(f"{shown} must be finite, for example {setting.default}.")
    low, high = meta["at_least"], meta["at_most"]
    # Written so that NaN fails too.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise SettingError(f"{shown} must be {limits}.")
    return value


def read(table: Iterable["Field[Any]"], environ: Mapping[str, str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The values of those settings that the environment or an override sets.

    Raises:
        SettingError: an unknown name or an invalid value.
    """
    known, injected = {PREFIX + each.name.upper(): each for each in table}, service_links(environ)
    texts = {name: text for name, text in environ.items() if name.startswith(PREFIX) and name not in injected}
    texts |= {PREFIX + name.upper(): str(value) for name, value in overrides.items() if value not in (None, "")}
    for name in texts:
        if name not in known:
            raise SettingError(unknown(name, [name for name, each in known.items() if group_of(each)]))
    return {known[name].name: parse(name, known[name], text) for name, text in texts.items()}


def group_of(setting: "Field[Any]") -> str:
    return str(setting.metadata["group"])


def row_of(setting: "Field[Any]") -> tuple[str, str, str, str]:
    """Variable, default, its unit, and the meaning with the choices."""
    meta, default = setting.metadata, setting.default
    text = f"{default:g}" if isinstance(default, float) else str(default)
    choices = f" One of: {', '.join(meta['choices'])}." if meta["choices"] else ""
    return PREFIX + setting.name.upper(), text, meta["unit"], meta["help"] + choices


def rows_of(table: Iterable["Field[Any]"]) -> Iterator[tuple[str, str, str]]:
    """Yield (variable, default with its unit, meaning with its choices) of those that users may set."""
    for name, default, unit, meaning in map(row_of, filter(group_of, table)):
        yield name, f"{default} {unit}".rstrip(), meaning


def unknown(name: str, valid: Sequence[str]) -> str:
    """The error of a variable that is no setting."""
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"Unknown setting {name}.{hint} `fluid serve --help` lists every setting."


def data_folder(data_dir: str) -> Path:
    """Folder of the embedded Valkey. Raises SettingError where there is no home folder to put it in."""
    try:
        base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
        # Absolute: Valkey changes its own folder, and a relative path would name a host in its URL.
        return Path(data_dir or Path(base) / "fluid-serve").expanduser().absolute()
    except RuntimeError as error:
        raise SettingError("There is no home folder (HOME): set FLUID_DATA_DIR to a writable folder.") from error


def split_checkpoints(text: str) -> list[str]:
    """The checkpoints that FLUID_CHECKPOINT names, separated by commas; a folder with a comma in its name is one."""
    names = [name for name in map(str.strip, text.split(",")) if name]
    return [text] if not names or Path(text).is_dir() else names
