"""Settings: parsing, errors, and the table in docs/configuration.md."""

from dataclasses import fields
from pathlib import Path

import pytest

from server.addresses import without_password
from server.cli.settings_page import markdown
from server.errors import SettingError
from server.queue.redis_client import connect
from server.setting_values import PREFIX, service_links
from server.settings import Settings, describe

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_env({}) == Settings()


def test_values_are_parsed_to_their_types() -> None:
    """A port that stayed a string would fail only deep inside the server."""
    settings = Settings.from_env({"FLUID_PORT": "9000", "FLUID_LEASE_S": "2.5", "OTHER": "x"})
    assert (settings.port, settings.lease_s) == (9000, 2.5)


def test_an_unknown_setting_is_rejected_with_the_nearest_name() -> None:
    """A misspelt setting that silently does nothing costs an evening."""
    with pytest.raises(SettingError, match=r"FLUID_MAX_ROW\b.*Did you mean FLUID_MAX_ROWS"):
        Settings.from_env({"FLUID_MAX_ROW": "4"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FLUID_PORT", "eighty", "whole number"),
        ("FLUID_PORT", "70000", "from 1 to 65535"),
        ("FLUID_LEASE_S", "nan", "at least 0.5"),
        ("FLUID_PUBLIC_URL", "images.example", "begin with http:// or https://"),
        ("FLUID_DEVICE", "magic", "auto, cpu, cuda"),
    ],
)
def test_an_invalid_value_is_rejected_with_the_valid_ones(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        Settings.from_env({name: value})
    assert value in str(refused.value)


def test_to_env_round_trips() -> None:
    """`fluid serve` passes its settings to its processes in the environment; a lossy way would split the service."""
    settings = Settings.from_env({"FLUID_MAX_ROWS": "3", "FLUID_DRAIN_S": "1.5"}, port="8123")
    assert Settings.from_env(settings.to_env()) == settings


def test_overrides_win_over_the_environment() -> None:
    """Flags are more specific than the environment."""
    assert Settings.from_env({"FLUID_PORT": "1"}, port="2", host=None).port == 2


def test_only_the_settings_of_tests_are_hidden() -> None:
    """A setting without a group is in no help and in no documentation."""
    hidden = {PREFIX + f.name.upper() for f in fields(Settings)} - {name for name, _, _ in describe()}
    assert hidden == {"FLUID_ENGINE", "FLUID_FAKE_STEP_MS"}


def test_every_meaning_is_a_sentence() -> None:
    """Help and documentation print it as it stands, the Markdown table on one line."""
    for name, _, meaning in describe():
        assert meaning.endswith(".") and "\n" not in meaning and "|" not in meaning, name


def test_the_page_is_up_to_date() -> None:
    """`python -m server.cli.settings_page > docs/configuration.md` after every change of a setting."""
    assert PAGE.read_text() == markdown()


def test_no_group_is_split() -> None:
    """Two tables with the same heading mean that a setting is in the wrong place in the class."""
    headings = [line for line in markdown().splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings))


def test_service_links_of_kubernetes_are_no_settings() -> None:
    """A Service named fluid, fluid-redis or fluid-gateway injects variables; every command exited with status 2."""
    injected = {
        "FLUID_SERVICE_HOST": "10.96.0.7",
        "FLUID_SERVICE_PORT": "8000",
        "FLUID_SERVICE_PORT_HTTP": "8000",
        "FLUID_PORT": "tcp://10.96.0.7:8000",
        "FLUID_PORT_8000_TCP": "tcp://10.96.0.7:8000",
        "FLUID_PORT_8000_TCP_PROTO": "tcp",
        "FLUID_PORT_8000_TCP_PORT": "8000",
        "FLUID_PORT_8000_TCP_ADDR": "10.96.0.7",
        "FLUID_REDIS_SERVICE_HOST": "fd00::7",
        "FLUID_REDIS_PORT": "tcp://[fd00::7]:6379",
        "FLUID_REDIS_PORT_6379_TCP": "tcp://[fd00::7]:6379",
        "FLUID_GATEWAY_PORT_53_UDP_ADDR": "10.96.0.9",
    }
    assert Settings.from_env(injected) == Settings()
    assert Settings.from_env(injected | {"FLUID_LEASE_S": "3"}, port="9000").port == 9000
    assert service_links(injected) == sorted(injected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLUID_PROT", "9000"),
        ("FLUID_PORT", "tcp"),
        ("FLUID_REDIS_PORT", "6379"),
        ("FLUID_SERVICE_HOST", "my host"),
        ("FLUID_SERVICE_PROT", "80"),
    ],
)
def test_what_only_resembles_a_service_link_is_refused(name: str, value: str) -> None:
    """Ignoring it would hide a misspelt setting."""
    with pytest.raises(SettingError, match=name):
        Settings.from_env({name: value})


@pytest.mark.parametrize("text", ["", " ", "\n"])
@pytest.mark.parametrize("name", [f.name for f in fields(Settings)])
def test_an_empty_value_means_the_default(name: str, text: str) -> None:
    """`FLUID_HOST=` listened on all interfaces without keys; other empty settings stopped the start."""
    assert Settings.from_env({PREFIX + name.upper(): text}) == Settings()
    assert Settings.from_env({PREFIX + name.upper(): ""}, **{name: ""}) == Settings()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("::1", "http://[::1]:8000"),
        ("[::1]", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
        ("fd00::7", "http://[fd00::7]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("gpu-box.example", "http://gpu-box.example:8000"),
    ],
)
def test_the_base_url_of_every_kind_of_host(host: str, url: str) -> None:
    """An IPv6 host without brackets made URLs that no client could read."""
    assert Settings.from_env({"FLUID_HOST": host}).base_url == url


@pytest.mark.parametrize("host", ["localhost:8000", "http://localhost", "two words", "::zz"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    """It failed deep inside the server, after the banner."""
    with pytest.raises(SettingError, match="must be a host"):
        Settings.from_env({"FLUID_HOST": host})


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("http://x", "begin with redis://"),
        ("localhost:6379", "redis://localhost:6379"),
        ("s3cret", "begin with redis://"),
        ("redis+sentinel://a:26379", "SERVICE"),
        ("redis+sentinel://:s3cret@a:26379,/main", "SERVICE"),
        ("redis+sentinel://a:s3cret/main", "escaped"),
        ("redis+sentinel://:s3cret@a/main/x", "SERVICE"),
        ("redis+sentinel://:s3cret#x@a/main", "escaped"),
        ("redis+sentinel://a/main?s3cret=1", "FLUID_REDIS_URL"),
        ("redis://:s3cret#x@db:6379", "escaped"),
        ("redis://:s3cret/x@db:6379", "escaped"),
        ("redis://:s3cret?x@db:6379", "escaped"),
        ("redis://:[s3cret@db:6379", "escaped"),
        ("redis://db:s3cret", "escaped"),
        ("redis://db:6379/s3cret", "escaped"),
        ("redis://db:6379?s3cret=1", "FLUID_REDIS_URL"),
        ("unix://", "path"),
    ],
)
def test_a_redis_url_that_cannot_work_is_refused_without_its_password(url: str, remedy: str) -> None:
    """These ended in tracebacks of redis-py, some with the password in them."""
    with pytest.raises(SettingError, match="FLUID_REDIS_URL") as refused:
        connect(Settings.from_env({"FLUID_REDIS_URL": url}).redis_url, 1)
    assert remedy in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "url", ["redis://db", "rediss://u:p@db:6380/2", "redis://[::1]:6379/0", "redis://:p@db?health_check_interval=5",
            "unix:///run/redis.sock", "unix:///run/redis.sock?db=1",
            "redis+sentinel://u:p@a:26379,b,[::1]:26380/main/2?sentinel_password=q"],
)  # fmt: skip
def test_redis_urls_that_work_are_kept(url: str) -> None:
    assert Settings.from_env({"FLUID_REDIS_URL": url}).redis_url == url


def test_no_secret_is_in_the_repr_of_the_settings() -> None:
    """A repr ends in logs and tracebacks."""
    secrets = {"redis_url": "redis://:s3cret@db", "api_keys": "s3cret", "api_key": "s3cret", "webhook_secret": "s3cret"}
    assert "s3cret" not in repr(Settings(**secrets))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:s3cret@db:6379/0", "redis://:***@db:6379/0"),
        ("redis://user:s3c@ret@db?password=s3cret", "redis://user:***@db"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis://[s3cret", "***"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
