"""API keys: how their file is read, and what the settings and `fluid keys` make of them."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ConfigError, InvalidApiKey
from server.gateway import api_keys
from server.gateway.api_keys import KEY_PREFIX, Caller, KeyRing, hash_key, new_key, parse_keys
from server.settings import Settings
from tests.server.harness import Service, fluid, start, status_of, until

ALICE, BOB = "fl-alice", "fl-bob"


def test_keys_are_added_and_removed_without_a_restart(new_service: Callable[..., Service], tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"alice {hash_key(ALICE)}\n")
    service = new_service(workers=0, api_keys_file=str(file))
    models = f"{service.settings.base_url}/v1/models"
    until(lambda: status_of(f"{service.settings.base_url}/health/live") == 200)

    def status(key: str) -> int:
        return httpx.get(models, headers={"Authorization": f"Bearer {key}"}).status_code

    assert (status(ALICE), status(BOB)) == (200, 401)
    _replace(file, f"bob {hash_key(BOB)}\n")
    until(lambda: status(BOB) == 200, what="Bob's new key")
    assert status(ALICE) == 401


def test_an_invalid_file_leaves_the_last_valid_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A typo in the file must neither lock every caller out nor fill the log."""
    monkeypatch.setattr(api_keys, "RELOAD_INTERVAL_S", 0.0)
    file = tmp_path / "keys.txt"
    file.write_text(f"alice {hash_key(ALICE)}\n")
    ring = KeyRing(Settings(api_keys_file=str(file)))
    _replace(file, f"alice {hash_key(ALICE)}\nbob sha256:oops\n")
    assert [ring.caller(f"Bearer {ALICE}").name for _ in range(3)] == ["alice"] * 3
    file.unlink()
    assert [ring.caller(f"Bearer {ALICE}").name for _ in range(3)] == ["alice"] * 3
    errors = [record.getMessage() for record in caplog.records]
    assert len(errors) == 2 and "line 2" in errors[0] and "cannot be read" in errors[1]
    file.write_text(f"bob {hash_key(BOB)}\n")
    assert ring.caller(f"Bearer {BOB}").name == "bob"


@pytest.mark.parametrize("trouble", ["unreadable", "not UTF-8", "invalid"])
def test_a_file_in_trouble_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """Its stamp was stored before it was read: a file that was unreadable for a second was never read again, and a
    revoked key stayed valid."""
    monkeypatch.setattr(api_keys, "RELOAD_INTERVAL_S", 0.0)
    file = tmp_path / "keys.txt"
    file.write_text(f"alice {hash_key(ALICE)}\n")
    ring = KeyRing(Settings(api_keys_file=str(file)))
    text = f"bob {hash_key(BOB)}\n"
    bad = {"unreadable": text.encode(), "not UTF-8": b"\xff" * len(text), "invalid": b"x" * len(text)}[trouble]
    file.write_bytes(bad)
    stamp = file.stat()
    with monkeypatch.context() as patch:
        if trouble == "unreadable":  # by a patch: root may read everything
            patch.setattr(Path, "read_bytes", _denied)
        assert ring.caller(f"Bearer {ALICE}").name == "alice"
    with file.open("r+b") as same:  # with the size, the times and the inode that it had
        same.write(text.encode())
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert ring.caller(f"Bearer {BOB}").name == "bob"
    with pytest.raises(InvalidApiKey):
        ring.caller(f"Bearer {ALICE}")


def _denied(*_: object, **__: object) -> bytes:
    raise PermissionError(13, "Permission denied")


def _replace(file: Path, text: str) -> None:
    """Replace the file as an editor or Kubernetes does: a new file under the old name."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, file)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (f"alice {ALICE}", "line 1: it must begin with a name"),
        ("# fine\nalice", "line 2"),
        (f"a/b {hash_key(ALICE)}", "line 1: it must begin"),
        (f"alice {hash_key(ALICE)}\nbob {hash_key(ALICE)}", "line 2: 'alice' has the same key"),
        (f"alice {hash_key(ALICE)} rate_limit=many", "rate_limit=NUMBER"),
        (f"alice {hash_key(ALICE)} admin", "'admin' is not one of"),
        (f"alice {hash_key(ALICE)} {ALICE}", "word 3 is not one of"),
        (f"alice {hash_key(ALICE)} max_jobs={ALICE}", "'max_jobs' is not one of"),
    ],
)
def test_an_invalid_line_stops_the_start_and_is_not_shown(lines: str, message: str) -> None:
    """An operator who puts a key itself into the file must not find it in the log."""
    with pytest.raises(ConfigError) as caught:
        KeyRing(Settings(api_keys=lines))
    assert message in str(caught.value) and ALICE not in str(caught.value)


def test_a_gateway_without_its_key_file_does_not_start(settings: Settings, tmp_path: Path) -> None:
    missing = replace(settings, api_keys_file=str(tmp_path / "none"))
    gateway = start("gateway", missing)
    assert gateway.wait(timeout=60) == 2
    with pytest.raises(ConfigError, match="FLUID_RATE_LIMIT"):
        KeyRing(Settings(rate_limit=5))


def test_limits_of_a_line_override_those_of_the_service(tmp_path: Path) -> None:
    ring = KeyRing(Settings(api_keys=f"a {hash_key('x')} max_jobs=0;b {hash_key('y')}", rate_limit=7, max_jobs=3))
    assert ring.caller("Bearer x") == Caller("a", rate_limit=7, max_jobs=0)
    assert ring.caller("bearer  y") == Caller("b", rate_limit=7, max_jobs=3)
    with pytest.raises(InvalidApiKey):
        ring.caller("Bearer z")


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_text_parses_or_raises_a_clear_error(lines: list[str]) -> None:
    try:
        parse_keys("\n".join(lines), Caller(), "here")
    except ConfigError as error:
        assert str(error).startswith("here, line ")


def test_keys_new_prints_the_key_once_and_its_line(settings: Settings) -> None:
    made = fluid(settings, "keys", "new", "alice")
    key = next(word for word in made.stderr.split() if word.startswith(KEY_PREFIX))
    assert made.stdout == f"alice {hash_key(key)}\n" and key not in made.stdout
    assert KeyRing(Settings(api_keys=made.stdout)).caller(f"Bearer {key}").name == "alice"
    refused = fluid(settings, "keys", "new", "a b")
    assert refused.returncode == 1 and "is not a valid key name" in refused.stderr
    assert new_key() != new_key()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_key_file_of_windows_is_read(tmp_path: Path, encoding: str) -> None:
    """Notepad begins it with a byte order mark, PowerShell's >> writes UTF-16; both were refused."""
    file, key = tmp_path / "keys.txt", new_key()
    file.write_bytes(f"alice {hash_key(key)}\r\n".encode(encoding))
    assert KeyRing(Settings(api_keys_file=str(file))).caller(f"Bearer {key}").name == "alice"
