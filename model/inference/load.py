"""Load a checkpoint by name into a serving engine, on the available device and CPU cores."""

from __future__ import annotations

from pathlib import Path

import torch

from fluid_kernels.allocation import is_out_of_memory, keep_freed_memory
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.cpus import usable_cpus
from model.inference.precision import choose_dtype, pack
from model.inference.serving import ServingEngine

UNSHARED = "int8 weights cannot be shared among devices: set FLUID_DTYPE to auto, or use one device"
SHIPPED = Path(__file__).parents[1] / "checkpoints"


def find_checkpoint(name: str) -> Path:
    """The folder of a checkpoint, given as a path or as the name of one that ships with the package.

    Raises:
        CheckpointError: it is neither; the message lists the shipped ones.
    """
    for folder in (Path(name), SHIPPED / name):
        if (folder / "config.json").exists():
            return folder
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    raise CheckpointError(
        f"no checkpoint {name!r}: neither a folder with a config.json nor one of the shipped ones "
        f"({', '.join(shipped) or 'none here'}). Give a folder, or train one with `make train`"
    )


def _load(folder: Path, device: str, dtype: torch.dtype) -> Checkpoint:
    """Load onto the device; weights in 8 bits are made on the CPU, for the float32 ones may not fit."""
    if dtype != torch.int8:
        return load_checkpoint(folder, device)
    checkpoint = load_checkpoint(folder)
    pack(checkpoint.model, dtype)
    checkpoint.model.to(device)
    checkpoint.tokenizer.to(device)
    return checkpoint


def load_engine(
    checkpoint_dir: str,
    max_rows: int,
    device: str = "auto",
    threads: int = 0,
    dtype: str = "auto",
    kernels: str = "auto",
    ranks: int = 1,
) -> ServingEngine:
    """Load a checkpoint and make it ready to generate.

    Args:
        checkpoint_dir: a folder, or a shipped checkpoint's name.
        max_rows: the maximum number of images decoded at once.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        threads: number of torch threads on a CPU; 0: as many as this process may use, shared by its ranks.
        dtype: of the backbone's weights in products, see precision.py.
        kernels: path of the head's loop: "auto", "torch" or "triton".
        ranks: number of devices that share the backbone; this process is the first of them.
    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be used; the message says why and what to do.
    """
    torch.set_num_threads(threads or max(1, usable_cpus() // ranks))
    if device == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("device is cuda, but torch sees no CUDA device: set FLUID_DEVICE=cpu or auto")
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    folder = find_checkpoint(checkpoint_dir)
    try:
        products = choose_dtype(dtype, torch.device(chosen))
        if ranks > 1 and products == torch.int8:
            raise CheckpointError(UNSHARED)
        if ranks > 1:
            from model.inference.devices.leader import load_leading, open_channel  # takes a second to import

            checkpoint = load_leading(folder, open_channel(chosen, ranks), max_rows, products)
        else:
            checkpoint = _load(folder, chosen, products)
        engine = ServingEngine(checkpoint, max_rows, products, kernels)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        other = "or set FLUID_DEVICE=cpu" if chosen == "cuda" else "or use a machine with more"
        raise CheckpointError(
            f"{folder.name} with {max_rows} rows does not fit into the memory of the {chosen}: lower FLUID_MAX_ROWS, "
            f"{other} ({error})"
        ) from error
    if chosen == "cpu":
        keep_freed_memory()  # not before: what loading frees is more than a step needs
    return engine
