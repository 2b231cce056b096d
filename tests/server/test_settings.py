"""Settings: one table, strict."""

import pytest

from server.errors import SettingError
from server.settings import Settings, describe


def test_defaults_come_from_the_table() -> None:
    """An empty environment must give a usable service."""
    assert Settings.from_env({}) == Settings()


def test_values_are_parsed_to_their_types() -> None:
    """A port that stays text would fail only deep inside the server."""
    settings = Settings.from_env({"FLUID_PORT": "9000", "FLUID_LEASE_S": "2.5", "OTHER": "x"})
    assert (settings.port, settings.lease_s) == (9000, 2.5)


def test_a_typo_stops_the_start_and_names_the_nearest() -> None:
    """A misspelt setting that silently does nothing costs an evening."""
    with pytest.raises(SettingError, match=r"FLUID_MAX_ROW\b.*Did you mean FLUID_MAX_ROWS"):
        Settings.from_env({"FLUID_MAX_ROW": "4"})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("FLUID_PORT", "eighty", "whole number"),
        ("FLUID_PORT", "70000", "from 1 to 65535"),
        ("FLUID_LEASE_S", "nan", "at least 0.5"),
        ("FLUID_PUBLIC_URL", "images.example", "begin with http:// or https://"),
        ("FLUID_ENGINE", "magic", "checkpoint, fake"),
    ],
)
def test_malformed_values_say_what_is_valid(name: str, value: str, says: str) -> None:
    """The message must carry the remedy, not only the refusal."""
    with pytest.raises(SettingError, match=says):
        Settings.from_env({name: value})


def test_children_get_exactly_these_settings() -> None:
    """`fluid serve` hands its settings on through the environment; a lossy way would split the service."""
    settings = Settings.from_env({"FLUID_MAX_ROWS": "3", "FLUID_DRAIN_S": "1.5"}, port="8123")
    assert Settings.from_env(settings.to_env()) == settings


def test_overrides_win_and_every_setting_has_help() -> None:
    """Flags beat the environment; an unexplained setting is not a setting."""
    assert Settings.from_env({"FLUID_PORT": "1"}, port="2").port == 2
    assert all(help for _, _, help in describe())
