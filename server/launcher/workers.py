"""Plan of the workers of one host: which devices and threads each one gets, and whether they fit into memory."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.errors import ConfigError
from server.launcher.memory import memory_bytes
from server.settings import Settings

GB = 10**9
#: Threads of one of several workers on a CPU: the shipped models are small, and more threads speed a step up less than
#: as many more images at once.
THREADS = 4


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """One worker: what its environment has beside the settings, and the number of processes that share its model."""

    env: Mapping[str, str] = field(default_factory=dict)
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """All workers, and a text for people."""

    workers: list[PlannedWorker]
    text: str


def plan_workers(
    settings: Settings, wanted: str, found: Mapping[str, Any], environ: Mapping[str, str] = os.environ, memory: int = 0
) -> Plan:
    """The plan for `wanted` workers, a number or "auto": one per device, or per THREADS (FLUID_THREADS) cores.

    Args:
        found: devices, cores and needs, as `loader.survey_host` gives them.
        memory: bytes of this host; 0: what it has.
    Raises:
        ConfigError: there are too few devices, or too little memory; the message has the figures.
    """
    if wanted != "auto" and not (wanted.isdecimal() and int(wanted)):
        raise ConfigError(f"--workers is {wanted!r}: give a number from 1, or auto.")
    count = 0 if wanted == "auto" else int(wanted)
    if found["devices"]:
        return _on_gpus(settings.tensor_parallel, count, found, environ)
    return _on_cpu(settings, count, found, memory or memory_bytes())


def _on_gpus(ranks: int, count: int, found: Mapping[str, Any], environ: Mapping[str, str]) -> Plan:
    devices = found["devices"]
    count = count or max(1, len(devices) // ranks)
    if count * ranks > len(devices):
        raise ConfigError(
            f"{_times(count, 'worker')} with {_times(ranks, 'device')} each need {count * ranks} CUDA devices, and "
            f"{_times(len(devices), 'device')} can be seen: lower --workers or FLUID_TENSOR_PARALLEL, or set "
            "FLUID_DEVICE=cpu."
        )
    for index in range(count * ranks):
        need, free = found["needs"][index % ranks], devices[index]["free"]
        if need > free:
            raise ConfigError(
                f"The model does not fit: with FLUID_MAX_ROWS={found['rows']} it needs {need / GB:.1f} GB on "
                f"cuda:{index}, where {free / GB:.1f} GB are free. Lower FLUID_MAX_ROWS, or raise "
                "FLUID_TENSOR_PARALLEL to share the model among devices."
            )
    seen = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = seen or [str(index) for index in range(len(devices))]
    groups = [range(i * ranks, (i + 1) * ranks) for i in range(count)]
    workers = [
        PlannedWorker({"CUDA_VISIBLE_DEVICES": ",".join(names[i] for i in group), "FLUID_DEVICE": "cuda"}, ranks)
        for group in groups
    ]
    lines = [f"{_times(count, 'worker')}: " + ", ".join("+".join(f"cuda:{i}" for i in group) for group in groups)]
    for rank, need in enumerate(found["needs"]):
        of = f" of rank {rank}" if ranks > 1 else ""
        lines.append(f"  memory{of}: about {need / GB:.1f} GB of {devices[rank]['free'] / GB:.1f} GB free")
    return Plan(workers, "\n".join(lines))


def _on_cpu(settings: Settings, count: int, found: Mapping[str, Any], memory: int) -> Plan:
    ranks, cpus = settings.tensor_parallel, found["cpus"]
    processes = count * ranks or max(1, cpus // min(cpus, settings.threads or THREADS))
    count = count or max(1, processes // ranks)
    threads = settings.threads or max(1, cpus // (count * ranks))
    if not settings.threads and count * ranks > 1:
        threads = min(threads, THREADS)
    need = sum(found["needs"])
    if count * need > memory:
        raise ConfigError(
            f"{_times(count, 'worker')} with FLUID_MAX_ROWS={found['rows']} need {count * need / GB:.1f} GB, "
            f"{need / GB:.1f} GB each, and this machine or container has {memory / GB:.1f} GB: start at most "
            f"{memory // need} of them, or lower FLUID_MAX_ROWS."
        )
    each = (
        f"{_times(ranks, 'process')} with {_times(threads, 'thread')} each" if ranks > 1 else _times(threads, "thread")
    )
    text = (
        f"{_times(count, 'worker')} on {_times(cpus, 'core')}: {each}\n"
        f"  memory: about {count * need / GB:.1f} GB of {memory / GB:.1f} GB"
    )
    env = {"FLUID_DEVICE": "cpu", "FLUID_THREADS": str(threads)}
    return Plan([PlannedWorker(env, ranks) for _ in range(count)], text)


def _times(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count} {noun if count == 1 else plural}"
