"""The work behind every peer: a batch of whole images by the same engine, encoded by the same code as ours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.images import codec
from server.images.recipe import make_recipe
from server.jobs import JobInput
from server.model_info import ModelInfo
from server.sampling import Sampling
from server.settings import Settings
from server.worker.engine.loader import load_engine
from server.worker.engine.protocol import RowRequest

PATH = "/v1/images/generations"
PID_FILE = "BENCH_PID_FILE"  # the process that holds the engine writes its id here; crash kills it
ROWS = 16


class Images:
    """The engine with the request's defaults. It is called by one thread at a time, as an engine must be."""

    def __init__(self) -> None:
        """Load the engine that the FLUID_* variables name, as a worker of ours does."""
        self._engine = load_engine(Settings.from_env())
        self._info = ModelInfo.from_mapping(self._engine.info())
        if PID_FILE in os.environ:
            Path(os.environ[PID_FILE]).write_text(str(os.getpid()))

    def generate(self, bodies: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Generate a PNG per request body. The batch takes as long as its longest member; rows leave it when done."""
        jobs = [self._job(body) for body in bodies]
        rows = self._engine.admit([RowRequest.of(job, 0) for job in jobs])
        pixels: dict[int, bytes] = {}
        while len(pixels) < len(rows):
            for row in self._engine.step():
                pixels[row] = self._engine.image(row)
                self._engine.release(row)
        return [self._encode(job, pixels[row]) for job, row in zip(jobs, rows, strict=True)]

    def _job(self, body: Mapping[str, Any]) -> JobInput:
        """Fill in the model's defaults, as the gateway does."""
        info = self._info
        quality = str(info.defaults["quality"])
        given = {} if body.get("num_inference_steps") is None else {"num_inference_steps": body["num_inference_steps"]}
        return JobInput(
            prompt=body["prompt"],
            model=info.id,
            n=1,
            width=info.image_size[0],
            height=info.image_size[1],
            quality=quality,
            output_format="png",
            output_compression=100,
            seed=body["seed"],
            sampling=Sampling.from_mapping({**info.defaults, **info.presets[quality], **given}),
        )

    def _encode(self, job: JobInput, pixels: bytes) -> bytes:
        recipe = make_recipe(job, 0, self._info.checkpoint_sha256)
        return codec.encode(pixels, (job.width, job.height), "png", job.output_compression, recipe)
