"""An engine without a model: deterministic images, settable step time and faults, for tests and load measurements.

Prompts with faults, each in its row's steps unless said otherwise:
[raise] fails; [raise-admit] fails at admission; [impossible] is rejected as the request's own fault;
[oom] runs out of memory while it shares the step; [hang] never returns; [kill] ends the process as a crash would;
[wrong-shape] generates an image that is too small.

[hold PATH] keeps its row at half of its steps, [hold PATH STEP] after that step, while the file PATH exists; {seed} in
PATH is the row's seed. Other rows go on, and so do snapshots, cancellation and draining: a test acts in the middle of a
job without a race. A held row repeats the preview of its step, if that has one.
"""

import hashlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from server.errors import ConfigError
from server.images.compositing import KnownPixels
from server.settings import Settings
from server.worker.engine.protocol import RowRequest

FAKE_ENGINE = "server.worker.engine.fake:create_fake"  #: as a value of FLUID_ENGINE
SIZE = (32, 32)
HANG_S = 3600.0
GRID = 4  # tokens in a line of the image
_HOLD = re.compile(r"\[hold ([^\] ]+)(?: (\d+))?\]")


def create_fake(settings: Settings) -> "FakeEngine":
    return FakeEngine(settings.max_rows, settings.fake_step_ms / 1000, settings.checkpoint)


@dataclass(slots=True)
class _Row:
    request: RowRequest
    done: int = 0

    def is_held(self) -> bool:
        """True at a step at which the prompt holds the row, while the file that it names there exists."""
        for path, step in _HOLD.findall(self.request.prompt):
            if self.done == int(step or self.request.sampling.num_inference_steps // 2):
                return os.path.exists(path.replace("{seed}", str(self.request.seed)))
        return False


class FakeEngine:
    """Implements the Engine protocol; an image depends on its request alone, as the contract requires."""

    image_size = SIZE
    kernels = "fake"
    device = "cpu"

    def __init__(self, max_rows: int, step_s: float, checkpoint: str = "") -> None:
        """`checkpoint` stands for weights; "missing..." cannot be loaded, and "hanging..." never finishes a step;
        "fake-MODEL" and "fake-MODEL-VERSION" are of another model than fake."""
        if checkpoint.startswith("missing"):
            raise ConfigError(f"The fake engine was told that there is no checkpoint {checkpoint!r}.")
        self.id = "-".join(checkpoint.split("-")[:2]) if checkpoint.startswith("fake-") else "fake"
        self.sha256 = hashlib.sha256(checkpoint.encode()).hexdigest()
        self.max_rows = max_rows
        self.step_s = HANG_S if checkpoint.startswith("hanging") else step_s
        self._rows: dict[int, _Row] = {}

    def warm_up(self, report: Callable[[int, int], None]) -> None:
        report(0, 1)

    def admit(self, requests: Sequence[RowRequest]) -> list[int]:
        for request in requests:
            if "[raise-admit]" in request.prompt:
                raise RuntimeError("fake engine: told to fail at admission")
            if "[impossible]" in request.prompt:
                raise ValueError("fake engine: told that this is impossible")
            if request.known is not None and len(request.known.pixels) != SIZE[0] * SIZE[1] * 3:
                raise ValueError(f"fake engine: a source image has {SIZE[0]} x {SIZE[1]} pixels")
        free = [row for row in range(self.max_rows) if row not in self._rows]
        if len(requests) > len(free):
            raise RuntimeError(f"{len(requests)} requests for {len(free)} free rows")
        rows = free[: len(requests)]
        self._rows.update({row: _Row(request) for row, request in zip(rows, requests, strict=True)})
        return rows

    def step(self) -> list[int]:
        if self.step_s:  # even a sleep of 0 takes 80 µs
            time.sleep(self.step_s)
        for row in self._rows.values():
            if "[kill]" in row.request.prompt:
                os.kill(os.getpid(), signal.SIGKILL)
            if "[raise]" in row.request.prompt:
                raise RuntimeError("fake engine: told to fail in a step")
            if "[oom]" in row.request.prompt and len(self._rows) > 1:
                raise MemoryError(f"fake engine: no memory for {len(self._rows)} rows")
            if "[hang]" in row.request.prompt:
                time.sleep(HANG_S)
        for row in self._rows.values():
            row.done += not row.is_held()
        return [i for i, row in self._rows.items() if row.done == row.request.sampling.num_inference_steps]

    def progress(self, row: int) -> tuple[int, int]:
        return self._rows[row].done, self._rows[row].request.sampling.num_inference_steps

    def image(self, row: int) -> bytes:
        """Return `fake_image`, partly grey while it is not finished."""
        request = self._rows[row].request
        if "[wrong-shape]" in request.prompt:
            return bytes(10)
        return fake_image(request, self._rows[row].done / request.sampling.num_inference_steps)

    def snapshot(self, row: int) -> bytes:
        state = {"checkpoint": self.sha256, "request": repr(self._rows[row].request), "done": self._rows[row].done}
        return json.dumps(state).encode()

    def restore(self, request: RowRequest, state: bytes) -> int:
        known = json.loads(state)
        if not isinstance(known, dict) or not isinstance(known.get("done"), int):
            raise ValueError("fake engine: this is no snapshot")
        if known.get("checkpoint") != self.sha256 or known.get("request") != repr(request):
            raise ValueError("fake engine: this snapshot is of another image")
        [row] = self.admit([request])
        self._rows[row].done = known["done"]
        return row

    def release(self, row: int) -> None:
        del self._rows[row]

    def prompt_tokens(self, prompt: str) -> int:
        return len(prompt.split())

    def info(self) -> Mapping[str, object]:
        return {
            "id": self.id,
            "family": "fake",
            "image_size": SIZE,
            "tokens": GRID * GRID,
            "presets": {
                "low": {"num_inference_steps": 4, "diffusion_steps": 4},
                "medium": {"num_inference_steps": 8, "diffusion_steps": 8},
                "high": {"num_inference_steps": 16, "diffusion_steps": 16},
            },
            "defaults": {
                "quality": "medium",
                "guidance_scale": 3.0,
                "guidance_schedule": "linear",
                "temperature": 1.0,
            },
            "limits": {
                "max_num_inference_steps": 20000,
                "max_diffusion_steps": 1000,
                "max_diffusion_steps_final": 1000,
                "max_guidance_scale": 20.0,
                "max_temperature": 2.0,
            },
            "vocabulary": ["apple", "cat"],
            "styles": ["plain"],
            "checkpoint_sha256": self.sha256,
            "license": "Apache-2.0",
            "description": "Coloured squares for tests of the service.",
        }


def fake_image(request: RowRequest, share: float = 1.0) -> bytes:
    """Two colours chosen by the request, blended along a diagonal; `share` is their strength, the rest is grey."""
    text = repr(request).encode()
    rng = random.Random(int.from_bytes(hashlib.sha256(text).digest()[:8], "big"))
    one, two = ([round(128 + (rng.randrange(256) - 128) * share) for _ in range(3)] for _ in range(2))
    width, height = SIZE
    last = width + height - 2
    diagonal = b"".join(
        bytes(round(a + (b - a) * (i / last)) for a, b in zip(one, two, strict=True)) for i in range(last + 1)
    )
    drawn = b"".join(diagonal[3 * y : 3 * (y + width)] for y in range(height))
    return drawn if request.known is None else _around(request.known, drawn)


def _around(known: KnownPixels, drawn: bytes) -> bytes:
    """The kept part comes back almost unchanged, as from a real tokenizer: each value is off by one."""
    (width, height), cell = SIZE, SIZE[0] // GRID
    kept = known.kept if isinstance(known.kept, bytes) else bytes(i < known.kept for i in range(GRID * GRID))
    mixed = bytearray(drawn)
    for y in range(height):
        for x in range(width):
            if kept[y // cell * GRID + x // cell]:
                at = 3 * (y * width + x)
                mixed[at : at + 3] = bytes(value ^ 1 for value in known.pixels[at : at + 3])
    return bytes(mixed)
