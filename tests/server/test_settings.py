"""Settings: parsing, errors, and the table in docs/configuration.md."""

from dataclasses import fields
from pathlib import Path

import pytest

from server.errors import SettingError
from server.settings import PREFIX, Settings, describe
from server.settings_page import markdown

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
    """`python -m server.settings > docs/configuration.md` after every change of a setting."""
    assert PAGE.read_text() == markdown()


def test_no_group_is_split() -> None:
    """Two tables with the same heading mean that a setting is in the wrong place in the class."""
    headings = [line for line in markdown().splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings))
