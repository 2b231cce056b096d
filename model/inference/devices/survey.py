"""What this host has and what a worker needs, as one JSON object, for `fluid serve --workers`.

python -m model.inference.devices.survey DEVICE ROWS RANKS CHECKPOINT...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch

from model.checkpoint import FORMAT_8_BITS, CheckpointError, read_config
from model.config import ConfigError, FluidConfig, MarConfig, NovaConfig
from model.cpus import usable_cpus
from model.inference.load import find_checkpoint
from model.memory import RESERVED, estimate, estimate_on_cpu
from model.networks.factory import config_from_json
from model.process_group import check_backends


def survey(device: str, rows: int, ranks: int, checkpoints: Sequence[str]) -> dict[str, object]:
    """Devices with their free memory, cores, and each checkpoint's model id and needs.

    Raises:
        CheckpointError, ConfigError: a checkpoint cannot be used, or not with so many ranks; the message names it.
    """
    cuda = device != "cpu" and torch.cuda.is_available()
    if ranks > 1:
        check_backends(cuda)
    devices = range(torch.cuda.device_count()) if cuda else ()
    return {
        "devices": [
            {"name": torch.cuda.get_device_name(i), "free": torch.cuda.mem_get_info(i)[0]} for i in devices
        ],
        "cpus": usable_cpus(), "rows": rows, "models": [_model(name, cuda, rows, ranks) for name in checkpoints],
    }  # fmt: skip


def _model(checkpoint: str, cuda: bool, rows: int, ranks: int) -> dict[str, object]:
    """A checkpoint's model id, and the bytes that the ranks of a worker need for it, the first one's first."""
    folder = find_checkpoint(checkpoint)
    try:
        raw = read_config(folder)
        config, name = config_from_json(raw["model"]), str(raw["about"]["name"])
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    counted = isinstance(config, FluidConfig | MarConfig | NovaConfig)
    if ranks > 1 and not isinstance(config, FluidConfig | MarConfig):
        raise ConfigError(f"{name}: models of family {config.family!r} cannot be shared among devices")
    if ranks > 1:
        from model.inference.devices.sharding import check_heads

        check_heads(config, ranks)
    if not counted:  # as files of bfloat16 or 8 bits, in float32 and in the dtype of products
        own = sum(file.stat().st_size for file in folder.glob("weights-*.safetensors"))
        parts = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) - own
        needs = [(6 if raw["format"] == FORMAT_8_BITS else 3) * own + 3 * parts + RESERVED]
    elif cuda:
        needs = [estimate(config, rows, shards=ranks, leads=rank == 0).total for rank in range(ranks)]
    else:
        needs = [estimate_on_cpu(config, rows, ranks, rank == 0) for rank in range(ranks)]
    return {"checkpoint": checkpoint, "id": name, "needs": needs}


def main() -> None:
    device, rows, ranks, *checkpoints = sys.argv[1:]
    try:
        found = survey(device, int(rows), int(ranks), checkpoints)
    except (CheckpointError, ConfigError) as error:
        sys.exit(str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
