"""Plan of the workers of one host: which devices and threads each one gets, and whether they fit into memory."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    model: str = ""  #: id, where a service has several


@dataclass(frozen=True, slots=True)
class Plan:
    """All workers, and a text for people."""

    workers: list[PlannedWorker]
    text: str
    models: tuple[str, ...] = ()  #: ids, in the order in which they were named


def plan_workers(
    settings: Settings, wanted: str, found: Mapping[str, Any], environ: Mapping[str, str] = os.environ, memory: int = 0
) -> Plan:
    """The plan for `wanted` workers of each model, a number or "auto": together one per device, or per THREADS
    (FLUID_THREADS) cores, and at least one of each.

    Args:
        found: devices, cores, and the models with their needs, as `loader.survey_host` gives them.
        memory: bytes of this host; 0: what it has.
    Raises:
        ConfigError: two models have one id, or there are too few devices, or too little memory, with the figures.
    """
    if wanted != "auto" and not (wanted.isdecimal() and int(wanted)):
        raise ConfigError(f"--workers is {wanted!r}: give a number from 1, or auto.")
    count, models = 0 if wanted == "auto" else int(wanted), found["models"]
    _check_ids(models)
    if found["devices"]:
        plan = _on_gpus(settings.tensor_parallel, count, found, environ)
    else:
        plan = _on_cpu(settings, count, found, memory or memory_bytes())
    return replace(plan, models=tuple(model["id"] for model in models))


def _check_ids(models: Sequence[Mapping[str, Any]]) -> None:
    known: dict[str, str] = {}
    for model in models:
        checkpoint, other = model["checkpoint"], known.get(model["id"])
        known[model["id"]] = checkpoint
        if other is None:
            continue
        if other == checkpoint:
            raise ConfigError(f"--checkpoint {other} is given twice: for more workers of a model use --workers N.")
        raise ConfigError(
            f"The checkpoints {other} and {checkpoint} have the same model id, {model['id']!r}, by which "
            "requests choose: change about.name in the config.json of one of them."
        )


def _worker_of(model: Mapping[str, Any], models: Sequence[Any], env: Mapping[str, str], ranks: int) -> PlannedWorker:
    return PlannedWorker({"FLUID_CHECKPOINT": model["checkpoint"], **env}, ranks, model["id"] if models[1:] else "")


def _on_gpus(ranks: int, count: int, found: Mapping[str, Any], environ: Mapping[str, str]) -> Plan:
    """Each worker has its own devices while there are enough; after that, models share devices as far as they fit."""
    devices, models = found["devices"], found["models"]
    count = count or max(1, len(devices) // ranks // len(models))
    if count * ranks > len(devices):
        raise ConfigError(
            f"{_times(count, 'worker')} with {_times(ranks, 'device')} each need {count * ranks} CUDA devices, and "
            f"{_times(len(devices), 'device')} can be seen: lower --workers or FLUID_TENSOR_PARALLEL, or set "
            "FLUID_DEVICE=cpu."
        )
    seen = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = seen or [str(index) for index in range(len(devices))]
    places = [range(i * ranks, (i + 1) * ranks) for i in range(len(devices) // ranks)]
    workers, lines, taken = [], [], [0] * len(devices)
    for number, model in enumerate(models):
        groups = [places[(number * count + i) % len(places)] for i in range(count)]
        for group in groups:
            for rank, index in enumerate(group):
                _check_device(model, model["needs"][rank], taken[index], index, found)
                taken[index] += model["needs"][rank]
            env = {"CUDA_VISIBLE_DEVICES": ",".join(names[i] for i in group), "FLUID_DEVICE": "cuda"}
            workers.append(_worker_of(model, models, env, ranks))
        of = f" of {model['id']}" if models[1:] else ""
        lines.append(
            f"{_times(count, 'worker')}{of}: " + ", ".join("+".join(f"cuda:{i}" for i in group) for group in groups)
        )
        for rank, need in enumerate(model["needs"]):
            of = f" of rank {rank}" if ranks > 1 else ""
            lines.append(
                f"  memory{of}: about {need / GB:.1f} GB of {devices[groups[0][rank]]['free'] / GB:.1f} GB free"
            )
    return Plan(workers, "\n".join(lines))


def _check_device(model: Mapping[str, Any], need: int, taken: int, index: int, found: Mapping[str, Any]) -> None:
    free = found["devices"][index]["free"]
    if taken + need <= free:
        return
    which, others = (model["id"], f"beside {taken / GB:.1f} GB of other models ") if taken else ("The model", "")
    raise ConfigError(
        f"{which} does not fit: with FLUID_MAX_ROWS={found['rows']} it needs {need / GB:.1f} GB {others}on "
        f"cuda:{index}, where {free / GB:.1f} GB are free. Lower FLUID_MAX_ROWS, or raise "
        "FLUID_TENSOR_PARALLEL to share the model among devices."
    )


def _on_cpu(settings: Settings, count: int, found: Mapping[str, Any], memory: int) -> Plan:
    ranks, cpus, models = settings.tensor_parallel, found["cpus"], found["models"]
    processes = max(1, cpus // min(cpus, settings.threads or THREADS))
    count = count or max(1, processes // ranks // len(models))
    total = count * len(models)
    threads = settings.threads or max(1, cpus // (total * ranks))
    if not settings.threads and total * ranks > 1:
        threads = min(threads, THREADS)
    needs = [sum(model["needs"]) for model in models]
    if count * sum(needs) > memory:
        of = f" of {' and '.join(model['id'] for model in models)}" if models[1:] else ""
        raise ConfigError(
            f"{_times(total, 'worker')}{of} with FLUID_MAX_ROWS={found['rows']} need {count * sum(needs) / GB:.1f} GB, "
            f"{' and '.join(f'{need / GB:.1f}' for need in needs)} GB each, and this machine or container has "
            f"{memory / GB:.1f} GB: start at most {memory // sum(needs)} of {'each' if models[1:] else 'them'}, or "
            "lower FLUID_MAX_ROWS."
        )
    each = (
        f"{_times(ranks, 'process')} with {_times(threads, 'thread')} each" if ranks > 1 else _times(threads, "thread")
    )
    kinds = ", ".join(f"{count} of {model['id']}" for model in models) if models[1:] else ""
    text = (
        f"{_times(total, 'worker')}{f' ({kinds})' if kinds else ''} on {_times(cpus, 'core')}: {each}\n"
        f"  memory: about {count * sum(needs) / GB:.1f} GB of {memory / GB:.1f} GB"
    )
    env = {"FLUID_DEVICE": "cpu", "FLUID_THREADS": str(threads)}
    return Plan([_worker_of(model, models, env, ranks) for model in models for _ in range(count)], text)


def _times(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count} {noun if count == 1 else plural}"
