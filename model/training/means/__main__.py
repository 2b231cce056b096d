"""Average the weights of two checkpoints, of which one went on from the other, or carry what one learned to another.

    python -m model.training.means model/checkpoints/atlas-128 runs/atlas-128/checkpoint --out runs/mean
    python -m model.training.means COPY runs/more/checkpoint --since START --share 1 --out runs/carried

Both ends of a training that went on from good weights lie in one basin, and their mean is often better than either:
the noise of the last steps goes, what both know stays (Wortsman et al. 2022, arXiv 2203.05482). Score it as any other.

With --since, what a training from START has changed is added to COPY, which came from START in another way, such as
by a guidance distillation, and need not be made again (Ilharco et al. 2022, arXiv 2212.04089). Its tokenizer stays.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from model.config import ConfigError
from model.data.fixed_sample import holds_styles_out
from model.training.command.flags import check_out, share

OWN = ("sampling", "description", "examples")  # metadata of a copy that fit its weights alone


def mean(one: Checkpoint, other: Checkpoint, part: float, since: Checkpoint | None = None) -> dict[str, torch.Tensor]:
    """`one` and part of the way from it to `other`; what is no float is `other`'s.

    Args:
        since: the way is from here instead.
    Raises:
        ConfigError: they are models of different sizes.
    """
    start = since or one
    first, second, begin = (each.model.state_dict() for each in (one, other, start))
    if not one.config == other.config == start.config:
        raise ConfigError(f"{one.folder} and {other.folder} hold models of different sizes, which have no mean")
    return {
        name: (first[name] + part * (value.double() - begin[name])).float() if value.is_floating_point() else value
        for name, value in second.items()
    }


def write(one: Checkpoint, other: Checkpoint, part: float, folder: Path, since: Checkpoint | None = None) -> None:
    """Save the mean as a checkpoint with the metadata and tokenizer of `other`, without its scores, and what was done.

    With `since` training, presets and tokenizer are those of `one`, such as a distillation, whose weights hold
    guidance and whose decoder may be sharper; the training of `other` is noted as carried over, beside any before.
    """
    other.model.float().load_state_dict(mean(one, other, part, since))
    about = {key: value for key, value in other.unscored.items() if not since or key not in OWN}
    trained, before = about.get("training", {}), one.about.get("training", {})
    if since:
        earlier = {"carried": before["carried"]} if "carried" in before else {}
        about |= {key: one.about[key] for key in OWN if key in one.about}
        about["training"] = before | {"carried": trained | {"share": part, "since": since.sha256} | earlier}
    else:
        with_ = {"name": one.about["name"], "sha256": one.sha256, "share": 1 - part}
        if not holds_styles_out(before):
            with_["styles_held_out"] = False
        about["training"] = trained | {"mean_with": with_}
    save_checkpoint(folder, other.model, (one if since else other).tokenizer, about)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.training.means", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=Path, help="folder of a checkpoint")
    parser.add_argument(
        "other", type=Path, help="folder of another one, whose name and words are kept, and tokenizer unless --since"
    )
    parser.add_argument("--since", type=Path, help="folder of the checkpoint that OTHER started from: the change since "
                        "then is added to ONE")  # fmt: skip
    parser.add_argument(
        "--share", type=share, default=0.5, help="of the second in the mean, or of the change (%(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the new checkpoint")
    args = parser.parse_args(argv)
    try:
        check_out(args.out, args.one, args.other, *([args.since] if args.since else []))
        since = load_checkpoint(args.since) if args.since else None
        write(load_checkpoint(args.one), load_checkpoint(args.other), args.share, args.out, since)
    except (CheckpointError, ConfigError) as error:
        sys.exit(str(error))
    print(f"checkpoint in {args.out}")


if __name__ == "__main__":
    main()
