"""Processor time and commands per image and per step, of the service's processes, with an engine that costs nothing.

Processor time is in units of a loop of pure Python that runs between the parts (calibration.py): it depends on the
machine's speed as that does, and hardly on what else the machine does.
"""

from __future__ import annotations

from typing import Any

from benchmarks.gate.calibration import calibrate
from benchmarks.load.generator import Generator, request_bytes
from benchmarks.load.service import Service, service

IMAGES, AT_ONCE, ROUNDS = 150, 10, 3
FEW_STEPS, MANY_STEPS = 1, 4096
STEPPED = 6  # images of many steps, one after another; processor time is counted in ticks of 10 ms
NOT_COUNTED = ("eval", "evalsha", "info", "config|resetstat", "ping")


async def measure() -> dict[str, float]:
    """Return cpu_ROLE per image, cpu_step of the worker, and commands_image, each the least of some rounds."""
    seen: dict[str, list[float]] = {}
    async with service(1, fake_step_ms=0.0, max_rows=AT_ONCE) as running:
        generator = Generator(running.settings.port)
        await generator.open(AT_ONCE)
        await _images(generator, FEW_STEPS, 2 * AT_ONCE)  # first requests load and connect
        for _ in range(ROUNDS):
            for name, value in (await _round(running, generator)).items():
                seen.setdefault(name, []).append(value)
        generator.close()
    return {name: min(values) for name, values in seen.items()}


async def _round(running: Service, generator: Generator) -> dict[str, float]:
    unit = calibrate()
    await running.queue.redis.config_resetstat()
    before = running.cpu_s()
    await _images(generator, FEW_STEPS, IMAGES)
    used = {role: seconds - before[role] for role, seconds in running.cpu_s().items()}
    commands = await _commands(running)
    unit = min(unit, calibrate())
    before_steps = running.cpu_s()["worker"]
    for _ in range(STEPPED):
        await _images(generator, MANY_STEPS, 1)
    steps = running.cpu_s()["worker"] - before_steps
    unit = min(unit, calibrate())
    return {
        **{f"cpu_{role}": seconds / IMAGES / unit for role, seconds in used.items()},
        "cpu_image": sum(used.values()) / IMAGES / unit,
        "cpu_step": steps / STEPPED / MANY_STEPS / unit,
        "commands_image": commands / IMAGES,
    }


async def _images(generator: Generator, steps: int, count: int) -> None:
    """Generate images, some at a time. Raises RuntimeError if one fails."""
    body: dict[str, Any] = {"prompt": "an apple", "seed": 1, "num_inference_steps": steps}
    for begin in range(0, count, AT_ONCE):
        run = await generator.run(request_bytes(body), [0.0] * min(AT_ONCE, count - begin))
        if run.failed:
            raise RuntimeError(f"images failed: {run.failed}")


async def _commands(running: Service) -> int:
    """Return the commands since the last reset, those within scripts included."""
    stats = await running.queue.redis.info("commandstats")
    return sum(value["calls"] for name, value in stats.items() if name.removeprefix("cmdstat_") not in NOT_COUNTED)
