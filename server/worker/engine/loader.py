"""Load the engine: the only file that joins the service to the model."""

import importlib
import json
import os
import subprocess
import sys
from typing import Any

from server.errors import ConfigError
from server.setting_values import DEFAULT_ENGINE, split_checkpoints
from server.settings import Settings
from server.worker.engine.protocol import Engine
from server.worker.engine.sharded import ShardedEngine


def load_engine(settings: Settings) -> Engine:
    """Load the engine with the function that FLUID_ENGINE names as module:function.

    Raises:
        ConfigError: there is no such function, or the checkpoint cannot be loaded; a restart would not help.
    """
    check_checkpoint(settings)
    module, _, name = settings.engine.partition(":")
    try:
        load = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"FLUID_ENGINE={settings.engine!r} is not a module:function to import: {error}.") from error
    engine: Engine = load(settings)
    return engine


def check_checkpoint(settings: Settings) -> None:
    """Raise ConfigError if FLUID_CHECKPOINT names several."""
    if len(names := split_checkpoints(settings.checkpoint)) > 1:
        raise ConfigError(
            f"FLUID_CHECKPOINT names {len(names)} checkpoints ({', '.join(names)}), of which one process loads one: "
            "choose it by --checkpoint. `fluid serve` serves all, each with workers of its own."
        )


def memory_report(preset: str, dtype: str) -> list[str]:
    """Lines about the memory that a worker on a GPU needs for a preset of the model package; nothing is loaded.

    Raises:
        ConfigError: there is no such preset.
    """
    try:
        from model.memory import report
    except ImportError as error:
        raise ConfigError(f"--preset needs the worker's packages, which are not installed here ({error}).") from error
    try:
        return report(preset, dtype=dtype)
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
            "Install them in a clone: pip install '.[worker]', or `make setup`."
        ) from error

    try:
        engine: Engine = load(
            checkpoint_dir=settings.checkpoint,
            max_rows=settings.max_rows,
            device=settings.device,
            dtype=settings.dtype,
            kernels=settings.kernels,
            threads=settings.threads,
            ranks=settings.tensor_parallel,
        )
    except ImportError as error:  # of a package that only this checkpoint needs
        raise ConfigError(f"{error}. Install it, or choose another FLUID_CHECKPOINT.") from error
    except (CheckpointError, ModelConfigError) as error:
        raise ConfigError(f"{error} (FLUID_CHECKPOINT={settings.checkpoint!r})") from error
    if settings.tensor_parallel == 1:
        return engine
    from model.inference.devices.channel import GroupBroken

    return ShardedEngine(engine, GroupBroken)  # it passes the rest of the protocol on


def follow_model(settings: Settings) -> None:
    """Run a rank other than the first of a worker that shares its model among devices, until the first ends.

    Raises:
        ConfigError: the group cannot be joined; a restart would not help.
    """
    from model.config import ConfigError as ModelConfigError
    from model.inference.devices.follower import follow

    try:
        follow(settings.device, settings.tensor_parallel, settings.threads)
    except ModelConfigError as error:
        raise ConfigError(f"{error}.") from error


def survey_host(settings: Settings) -> dict[str, Any]:
    """Devices of this host, and the id and needs of each checkpoint; a process of its own looks, so that this one stays
    small. Another engine than the default one has the checkpoints' names as ids, and unknown needs.

    Raises:
        ConfigError: the model's packages or a checkpoint are missing.
    """
    checkpoints = split_checkpoints(settings.checkpoint)
    if settings.engine != DEFAULT_ENGINE:
        models = [{"checkpoint": each, "id": each, "needs": [0] * settings.tensor_parallel} for each in checkpoints]
        return {"devices": [], "cpus": os.cpu_count() or 1, "rows": settings.max_rows, "models": models}
    command = [sys.executable, "-m", "model.inference.devices.survey", settings.device, str(settings.max_rows),
               str(settings.tensor_parallel), settings.dtype, *checkpoints]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{done.stderr.strip().rpartition(chr(10))[2]} (FLUID_CHECKPOINT={settings.checkpoint!r})")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
