"""Put a decoder that was trained further into a checkpoint, which keeps its model and its tokens.

    python -m model.training.train_tokenizer --preset atlas-128 --data data/atlas --things 95 \\
        --decoder-of model/checkpoints/atlas-128 --out runs/decoder
    python -m model.training.reconstruction model/checkpoints/atlas-128 runs/decoder/tokenizer.safetensors \\
        --out runs/sharper
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from model.config import ConfigError, FluidConfig
from model.networks.tokenizer import PcaSkipTokenizer
from model.networks.vq_tokenizer import VqTokenizer
from model.training.command.flags import check_out
from model.training.reconstruction.load import load_tokenizer
from model.training.reconstruction.start import decoder_names

ROUNDING = 2**-7  # of bfloat16, in which checkpoints keep weights


def put_decoder(checkpoint: Checkpoint, source: str, folder: Path) -> None:
    """Save the checkpoint with the tokenizer of `source`, without scores, and with a note of what it had before.

    Args:
        source: file of a tokenizer, or folder of a checkpoint.

    Raises:
        ConfigError: that tokenizer is missing, has other sizes or another encoder, or is of a kind without training.
    """
    old, config = checkpoint.tokenizer, checkpoint.config
    if not isinstance(config, FluidConfig) or not isinstance(old, PcaSkipTokenizer | VqTokenizer):
        raise ConfigError(f"the tokenizer of {checkpoint.folder} was imported: only one trained here can be changed")
    new = load_tokenizer(config, source)
    if not isinstance(new, PcaSkipTokenizer | VqTokenizer):
        raise ConfigError(f"the tokenizer of {source} was imported: choose one that train_tokenizer wrote")
    trained = decoder_names(new)
    before, after = old.state_dict(), new.state_dict()
    for name, value in before.items():
        if name not in trained and not torch.allclose(after[name].double(), value.double(), rtol=ROUNDING, atol=1e-6):
            raise ConfigError(
                f"{source} makes other tokens than the model of {checkpoint.folder} draws ({name} differs): train "
                f"it with --decoder-of {checkpoint.folder}"
            )
    new.load_state_dict({name: value if name in trained else before[name] for name, value in after.items()})
    earlier = {"name": checkpoint.about["name"], "sha256": checkpoint.sha256}
    training = checkpoint.about.get("training", {}) | {"other_decoder_than": earlier}
    save_checkpoint(folder, checkpoint.model, new, checkpoint.unscored | {"training": training})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.training.reconstruction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint")
    parser.add_argument("tokenizer", help="file that train_tokenizer --decoder-of wrote, or folder of a checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new checkpoint")
    args = parser.parse_args(argv)
    try:
        check_out(args.out, args.checkpoint, args.tokenizer)
        put_decoder(load_checkpoint(args.checkpoint), args.tokenizer, args.out)
    except (CheckpointError, ConfigError) as error:
        sys.exit(str(error))
    print(f"checkpoint in {args.out}")


if __name__ == "__main__":
    main()
