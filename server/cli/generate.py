"""`fluid generate`: the engine in this process, no server, no queue."""

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.cli.progress import Status, steps
from server.errors import InvalidRequest
from server.gateway.requests.resolve import resolve
from server.gateway.schemas.images import ImageRequest
from server.images.codec import encode, numbered
from server.images.recipe import difference
from server.jobs import JobInput, ModelInfo
from server.settings import Settings
from server.worker.engine.protocol import RowRequest
from server.worker.publisher import recipe


def run(settings: Settings, request: ImageRequest, out: Path, like: Mapping[str, Any] | None = None) -> list[Path]:
    """Draw and save; with n > 1 the files are numbered. `like`: the recipe of the picture that is to come again."""
    from server.worker.loop import load_engine

    began = time.monotonic()
    with Status("starting") as status:
        status.say("loading the model")
        engine = load_engine(replace(settings, max_rows=request.n or 1))
    info = ModelInfo.from_mapping(engine.info())
    job, warnings = resolve(request, {info.id: info}, info.id)
    for warning in [*warnings, *(difference(like, info.checkpoint_sha256) if like else [])]:
        print(warning, file=sys.stderr)
    loaded_s = time.monotonic() - began
    try:
        rows = engine.admit([RowRequest.of(job, index) for index in range(job.n)])
    except ValueError as error:
        raise InvalidRequest(f"The model cannot draw this: {error}") from error
    row_of = dict(zip(rows, range(job.n), strict=True))
    paths: list[Path] = []
    with steps(job.prompt[:40], job.num_inference_steps) as bar:
        while len(paths) < job.n:
            for row in engine.step():
                paths.append(_save(engine.image(row), job, row_of[row], info, out))
                engine.release(row)
            bar.update()
    drawn_s = time.monotonic() - began - loaded_s
    print(f"seed {job.seed}; model loaded in {loaded_s:.2f} s, {job.n} drawn in {drawn_s:.2f} s")
    for path in sorted(paths):
        print(path)
    return sorted(paths)


def _save(pixels: bytes, job: JobInput, index: int, info: ModelInfo, out: Path) -> Path:
    path = numbered(out, index, job.n)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = recipe(job, index, info.checkpoint_sha256)
    size = (job.width, job.height)
    path.write_bytes(encode(pixels, size, job.output_format, job.output_compression, metadata))
    return path
