"""Load the engine. The only file in which the service meets the model."""

import os

from server.errors import ConfigError
from server.settings import Settings
from server.worker.engine.protocol import Engine


def load_engine(settings: Settings) -> Engine:
    """The only place where the service meets the model."""
    if settings.engine == "fake":
        from server.worker.engine.fake import FakeEngine

        return FakeEngine(settings.max_rows, settings.fake_step_ms / 1000, settings.checkpoint)
    # Before torch is loaded: threads that spin long while they wait for each other make a worker that shares its
    # machine many times slower; threads that never spin make it twice as slow alone (docs/log.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from model.checkpoint import CheckpointError
    from model.config import ConfigError as ModelConfigError
    from model.inference.load import load_engine as load

    try:
        return load(
            checkpoint_dir=settings.checkpoint,
            max_rows=settings.max_rows,
            device=settings.device,
            dtype=settings.dtype,
            kernels=settings.kernels,
            threads=settings.threads,
        )
    except (CheckpointError, ModelConfigError) as error:
        raise ConfigError(f"{error} (FLUID_CHECKPOINT={settings.checkpoint!r})") from error
