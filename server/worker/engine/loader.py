"""Load the engine: the only file that joins the service to the model."""

import importlib
import os

from server.errors import ConfigError
from server.settings import Settings
from server.worker.engine.protocol import Engine


def load_engine(settings: Settings) -> Engine:
    """Load the engine with the function that FLUID_ENGINE names as module:function.

    Raises:
        ConfigError: there is no such function, or the checkpoint cannot be loaded; a restart would not help.
    """
    module, _, name = settings.engine.partition(":")
    try:
        load = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"FLUID_ENGINE={settings.engine!r} is not a module:function to import: {error}.") from error
    engine: Engine = load(settings)
    return engine


def memory_report(preset: str) -> list[str]:
    """Lines about the memory that a worker on a GPU needs for a preset of the model package; nothing is loaded.

    Raises:
        ConfigError: there is no such preset.
    """
    from model.memory import report

    try:
        return report(preset)
    except KeyError as error:
        raise ConfigError(f"--preset: {error.args[0]}.") from error


def load_model(settings: Settings) -> Engine:
    """Load a checkpoint of the model package; the default engine."""
    # Before torch is loaded: threads that spin long while they wait for each other make a worker that shares its
    # machine many times slower; threads that never spin make it twice as slow alone (docs/log.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        from model.checkpoint import CheckpointError
        from model.config import ConfigError as ModelConfigError
        from model.inference.load import load_engine as load
    except (ImportError, OSError) as error:  # OSError: a library of torch's is missing
        raise ConfigError(
            f"The model cannot be loaded without its packages ({error}). "
            "Install them: pip install 'fluid-serve[worker]', or `make setup` in a clone."
        ) from error

    try:
        return load(
            checkpoint_dir=settings.checkpoint,
            max_rows=settings.max_rows,
            device=settings.device,
            dtype=settings.dtype,
            kernels=settings.kernels,
            threads=settings.threads,
        )
    except ImportError as error:  # of a package that only this checkpoint needs
        raise ConfigError(f"{error}. Install it, or choose another FLUID_CHECKPOINT.") from error
    except (CheckpointError, ModelConfigError) as error:
        raise ConfigError(f"{error} (FLUID_CHECKPOINT={settings.checkpoint!r})") from error
