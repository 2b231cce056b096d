"""The base of every error, and the errors of a configuration: the service cannot start."""


class FluidError(Exception):
    """Base of everything this service raises on purpose."""


class ConfigError(FluidError):
    """The service cannot start with this configuration."""


class SettingError(ConfigError):
    """A FLUID_* name or value is wrong."""


class DataDirInUse(ConfigError):
    """Another instance holds the data folder."""


class ValkeyStartError(ConfigError):
    """The embedded Valkey is missing or did not start."""
