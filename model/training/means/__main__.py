"""Average the weights of two checkpoints, of which one went on from the other.

    python -m model.training.means model/checkpoints/atlas-128 runs/atlas-128/checkpoint --out runs/mean

Both ends of a training that went on from good weights lie in one basin, and their mean is often better than either:
the noise of the last steps goes, what both know stays (Wortsman et al. 2022, arXiv 2203.05482). Score it as any other.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from model.config import ConfigError
from model.training.command.flags import share


def mean(one: Checkpoint, other: Checkpoint, part: float) -> dict[str, torch.Tensor]:
    """The weights 1 - part of `one` and part of `other`; what is no float, and the tokenizer, are `other`'s.

    Raises:
        ConfigError: they are models of different sizes.
    """
    first, second = one.model.state_dict(), other.model.state_dict()
    if one.config != other.config:
        raise ConfigError(f"{one.folder} and {other.folder} hold models of different sizes, which have no mean")
    return {
        name: torch.lerp(first[name].double(), value.double(), part).float() if value.is_floating_point() else value
        for name, value in second.items()
    }


def write(one: Checkpoint, other: Checkpoint, part: float, folder: Path) -> None:
    """Save the mean as a checkpoint with the metadata of `other`, without its scores, and what was done."""
    other.model.float().load_state_dict(mean(one, other, part))
    about = {key: value for key, value in other.about.items() if key != "metrics"}
    with_ = {"name": one.about["name"], "sha256": one.sha256, "share": 1 - part}
    about["training"] = about.get("training", {}) | {"mean_with": with_}
    save_checkpoint(folder, other.model, other.tokenizer, about)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.training.means", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=Path, help="folder of a checkpoint")
    parser.add_argument("other", type=Path, help="folder of another one, whose name, words and tokenizer are kept")
    parser.add_argument("--share", type=share, default=0.5, help="of the second in the mean (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new checkpoint")
    args = parser.parse_args(argv)
    try:
        if args.out.resolve() in (args.one.resolve(), args.other.resolve()):
            raise ConfigError(f"--out {args.out} is one of the two: choose another folder")
        write(load_checkpoint(args.one), load_checkpoint(args.other), args.share, args.out)
    except (CheckpointError, ConfigError) as error:
        sys.exit(str(error))
    print(f"checkpoint in {args.out}")


if __name__ == "__main__":
    main()
