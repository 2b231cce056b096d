"""Loading an engine by the name of its factory."""

import pytest

from server.errors import ConfigError
from server.settings import Settings, describe
from server.worker.engine.fake import FAKE_ENGINE, FakeEngine
from server.worker.engine.loader import load_engine


def test_the_setting_names_a_function() -> None:
    assert isinstance(load_engine(Settings(engine=FAKE_ENGINE)), FakeEngine)


@pytest.mark.parametrize("engine", ["", "fake", "server.worker.engine.fake", "server.nothing:load", "json:nothing"])
def test_a_wrong_name_is_a_configuration_error(engine: str) -> None:
    """It ends the worker with one line, instead of a traceback and a restart loop."""
    with pytest.raises(ConfigError, match="FLUID_ENGINE="):
        load_engine(Settings(engine=engine))


def test_settings_for_tests_are_not_advertised() -> None:
    assert not {"FLUID_ENGINE", "FLUID_FAKE_STEP_MS"} & {name for name, _, _ in describe()}
