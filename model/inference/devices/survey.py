"""What this host has and what a worker needs, as one JSON object, for `fluid serve --workers`.

python -m model.inference.devices.survey CHECKPOINT DEVICE ROWS RANKS
"""

from __future__ import annotations

import json
import sys

import torch

from model.checkpoint import CheckpointError, read_config
from model.config import ConfigError, FluidConfig, MarConfig, NovaConfig
from model.cpus import usable_cpus
from model.inference.load import find_checkpoint
from model.memory import RESERVED, estimate, estimate_on_cpu
from model.networks.factory import config_from_json
from model.process_group import check_backends


def survey(checkpoint: str, device: str, rows: int, ranks: int) -> dict[str, object]:
    """Devices with their free memory, cores, and the bytes that the ranks of a worker need, the first one's first.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be used, or not with so many ranks.
    """
    folder = find_checkpoint(checkpoint)
    try:
        config = config_from_json(read_config(folder)["model"])
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    cuda = device != "cpu" and torch.cuda.is_available()
    counted = isinstance(config, FluidConfig | MarConfig | NovaConfig)
    if ranks > 1 and not isinstance(config, FluidConfig | MarConfig):
        raise ConfigError(f"models of family {config.family!r} cannot be shared among devices")
    if ranks > 1:
        from model.inference.devices.sharding import check_heads

        check_heads(config, ranks)
        check_backends(cuda)
    if not counted:  # as files of bfloat16, in float32 and in the dtype of products
        needs = [3 * sum(file.stat().st_size for file in folder.rglob("*.safetensors")) + RESERVED]
    elif cuda:
        needs = [estimate(config, rows, shards=ranks, leads=rank == 0).total for rank in range(ranks)]
    else:
        needs = [estimate_on_cpu(config, rows, ranks, rank == 0) for rank in range(ranks)]
    devices = range(torch.cuda.device_count()) if cuda else ()
    return {
        "devices": [
            {"name": torch.cuda.get_device_name(i), "free": torch.cuda.mem_get_info(i)[0]} for i in devices
        ],
        "cpus": usable_cpus(), "needs": needs, "rows": rows,
    }  # fmt: skip


def main() -> None:
    checkpoint, device, rows, ranks = sys.argv[1:]
    try:
        found = survey(checkpoint, device, int(rows), int(ranks))
    except (CheckpointError, ConfigError) as error:
        sys.exit(str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
