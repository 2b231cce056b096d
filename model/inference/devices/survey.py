"""What this host has and what a worker needs, as one JSON object, for `fluid serve --workers`.

python -m model.inference.devices.survey DEVICE ROWS RANKS DTYPE CHECKPOINT...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from model.checkpoint import CheckpointError, checked_sizes, read_config
from model.config import ConfigError, FluidConfig, MarConfig, NovaConfig
from model.cpus import usable_cpus
from model.inference.load import UNSHARED, find_checkpoint
from model.inference.precision import choose_dtype
from model.memory import (
    CPU_VALUE_BYTES,
    RESERVED,
    encoder_parameters,
    estimate,
    estimate_on_cpu,
    key_value_bytes,
    sampling_bytes,
)  # fmt: skip
from model.networks.factory import config_from_json
from model.process_group import check_backends


def survey(device: str, rows: int, ranks: int, dtype: str, checkpoints: Sequence[str]) -> dict[str, object]:
    """Devices with their free memory, cores, and each checkpoint's model id and needs with FLUID_DTYPE=`dtype`.

    Raises:
        CheckpointError, ConfigError: a checkpoint cannot be used, or not with so many ranks; the message names it.
    """
    cuda = device != "cpu" and torch.cuda.is_available()
    if ranks > 1:
        check_backends(cuda)
    products = choose_dtype(dtype, torch.device("cuda" if cuda else "cpu"))
    if ranks > 1 and products == torch.int8:
        raise CheckpointError(UNSHARED)
    dtype = str(products).removeprefix("torch.")
    devices = range(torch.cuda.device_count()) if cuda else ()
    return {
        "devices": [
            {"name": torch.cuda.get_device_name(i), "free": torch.cuda.mem_get_info(i)[0]} for i in devices
        ],
        "cpus": usable_cpus(), "rows": rows,
        "models": [_model(name, cuda, rows, ranks, dtype) for name in checkpoints],
    }  # fmt: skip


def _model(checkpoint: str, cuda: bool, rows: int, ranks: int, dtype: str) -> dict[str, object]:
    """A checkpoint's model id, and the bytes that the ranks of a worker need for it, the first one's first."""
    folder = find_checkpoint(checkpoint)
    raw = read_config(folder)
    with checked_sizes(folder):
        config, name = config_from_json(raw["model"]), raw["about"]["name"]
    counted = isinstance(config, FluidConfig | MarConfig | NovaConfig)
    if ranks > 1 and not isinstance(config, FluidConfig | MarConfig):
        raise ConfigError(f"{name}: models of family {config.family!r} cannot be shared among devices")
    if ranks > 1:
        from model.inference.devices.sharding import check_heads

        check_heads(config, ranks)
    if not counted:  # by the values in its files, whatever they are stored in; text encoders as with bfloat16
        own = sum(_values(file) for file in folder.glob("weights-*.safetensors"))
        parts = sum(_values(file) for file in folder.rglob("*.safetensors")) - own
        parts += encoder_parameters(config)  # LlamaGen's, which is never in the folder
        weights = CPU_VALUE_BYTES[dtype] * own + CPU_VALUE_BYTES["bfloat16"] * parts
        needs = [weights + key_value_bytes(config, rows, dtype) + sampling_bytes(config, rows) + RESERVED]
    elif cuda:
        needs = [estimate(config, rows, shards=ranks, leads=rank == 0, dtype=dtype).total for rank in range(ranks)]
    else:
        needs = [estimate_on_cpu(config, rows, ranks, rank == 0, dtype) for rank in range(ranks)]
    return {"checkpoint": checkpoint, "id": name, "needs": needs}


def _values(file: Path) -> int:
    """Number of values in a file of safetensors, from its header."""
    try:
        with safe_open(file, "pt") as opened:
            return sum(prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy the checkpoint again") from error


def main() -> None:
    device, rows, ranks, dtype, *checkpoints = sys.argv[1:]
    try:
        found = survey(device, int(rows), int(ranks), dtype, checkpoints)
    except (CheckpointError, ConfigError) as error:
        sys.exit(str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
