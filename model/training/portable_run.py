"""Training on a machine that is lent for minutes: what to take there, and what to bring back.

    python -m model.training.portable_run pack --recipe model/recipes/scenes-128-gpu.toml --out runs/leg
    ... runs/leg and this repository to the machine; there, as often as it is lent:
    python -m model.training --recipe runs/leg/recipe.toml --leg-minutes 8 --out runs/scenes-128-gpu
    python -m model.training.portable_run split runs/scenes-128-gpu parts
    ... parts back; here, to look at it, or there, to go on exactly where the leg ended:
    python -m model.training.portable_run join parts runs/scenes-128-gpu

The packed folder holds sprites, recipe and a text encoder cut to the recipe's captions; scenes are composed and
captions encoded on the machine. Where the state is too many bytes to travel, a later leg begins with the weights of the
last one's checkpoint instead (`start_from` in the recipe); optimiser and learning rate then start anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.data.sources import DataError
from model.networks.text_encoder import package_folder
from model.presets import PRESETS
from model.training.feeds import open_bank
from model.training.recipe import Recipe
from model.training.text_pruning import prune_text_encoder

MIB = 2**20
PART = re.compile(r"leg-([0-9a-f]{12})-(\d+)-of-(\d+)\.part")
KEPT = ("state.pt", "history.json", "sheet-final.png", "checkpoint")  # of a run's folder


class LegError(RuntimeError):
    """A leg cannot be packed, split or joined; the message says what to do."""


def pack(recipe_file: Path, out: Path) -> int:
    """Fill `out` with all that training by the recipe needs besides the code; returns its bytes.

    Raises:
        LegError: the recipe trains on finished pictures, which would not be small.
        ConfigError, DataError: the recipe, its tokenizer or its sprites are not there.
    """
    recipe = Recipe.load(recipe_file)
    if recipe.scenes is None:
        raise LegError(f"{recipe_file} has no table [scenes]: only composed pictures can be packed in a few megabytes")
    bank, text = open_bank(recipe), PRESETS[recipe.preset].text
    shutil.rmtree(out, ignore_errors=True)
    bank.sprites.save(out / "data")
    paths = {"data": out / "data"}
    if not Path(recipe.tokenizer).is_dir():  # a checkpoint's folder is part of the repository
        if not Path(recipe.tokenizer).exists():
            raise ConfigError(
                f"no tokenizer at {recipe.tokenizer}: run `python -m model.training.train_tokenizer` first"
            )
        paths["tokenizer"] = out / "tokenizer.safetensors"
        shutil.copyfile(recipe.tokenizer, paths["tokenizer"])
    if text.kind == "package":
        source = Path(recipe.text_encoder) if recipe.text_encoder else package_folder(text.name)
        paths["text_encoder"] = out / "text_encoder"
        prune_text_encoder(source, ["", *bank.captions], paths["text_encoder"])
    lines = recipe_file.read_text(encoding="utf-8").splitlines()
    for key, path in paths.items():
        lines = [f"{key} = {json.dumps(str(path))}" if re.match(rf"{key}\s*=", line) else line for line in lines]
    (out / "recipe.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def split(run: Path, out: Path, part_bytes: int = 16 * MIB, most: int = 8) -> list[Path]:
    """The run's state, checkpoint, curve and sheet as at most `most` files of at most `part_bytes`.

    Raises:
        LegError: there is no state, or it does not fit.
    """
    if not (run / "state.pt").exists():
        raise LegError(f"{run} holds no state.pt: train there first (python -m model.training --out {run})")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("leg-*.part"):
        old.unlink()
    with tempfile.TemporaryFile(dir=out) as whole:
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for name in KEPT:
                if (run / name).exists():
                    tar.add(run / name, arcname=name)
        size = whole.tell()
        count = -(-size // part_bytes)
        if count > most:
            raise LegError(
                f"{run} makes {count} files of {part_bytes / MIB:g} MiB, more than {most}; train a smaller preset, or "
                f"bring back {run / 'checkpoint'} alone and let the next leg begin with it (start_from)"
            )
        whole.seek(0)
        digest = hashlib.file_digest(whole, "sha256").hexdigest()[:12]
        whole.seek(0)
        parts = [out / f"leg-{digest}-{number + 1}-of-{count}.part" for number in range(count)]
        for part in parts:
            part.write_bytes(whole.read(part_bytes))
    return parts


def join(folder: Path, run: Path) -> None:
    """Put a run's folder together again from what `split` left; what is there already is replaced.

    Raises:
        LegError: parts are missing, damaged, or of two legs.
    """
    found = {file: match for file in sorted(folder.glob("leg-*.part")) if (match := PART.fullmatch(file.name))}
    legs = {(match[1], int(match[3])) for match in found.values()}
    if len(legs) != 1:
        raise LegError(f"{folder} holds parts of {len(legs)} legs; give a folder with all parts of one")
    (digest, count), numbers = legs.pop(), {int(match[2]): file for file, match in found.items()}
    if missing := sorted(set(range(1, count + 1)) - set(numbers)):
        raise LegError(f"{folder}: part {missing[0]} of {count} is missing; copy it again")
    run.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=run) as whole:
        for number in range(1, count + 1):
            whole.write(numbers[number].read_bytes())
        whole.seek(0)
        if hashlib.file_digest(whole, "sha256").hexdigest()[:12] != digest:
            raise LegError(f"{folder}: the parts' SHA-256 is not {digest}…; a part is damaged, copy them again")
        whole.seek(0)
        with tarfile.open(fileobj=whole) as tar:
            tar.extractall(run, filter="data")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="what training by a recipe needs besides the code")
    packing.add_argument("--recipe", type=Path, required=True)
    packing.add_argument("--out", type=Path, default=Path("runs/leg"))
    splitting = commands.add_parser("split", help="a run's folder to a few files of limited size")
    splitting.add_argument("run", type=Path)
    splitting.add_argument("out", type=Path)
    splitting.add_argument("--part-mib", type=float, default=16, help="largest file")
    splitting.add_argument("--most", type=int, default=8, help="files")
    joining = commands.add_parser("join", help="those files to a run's folder")
    joining.add_argument("folder", type=Path)
    joining.add_argument("run", type=Path)
    args = parser.parse_args(argv)
    try:
        if args.command == "pack":
            print(f"{pack(args.recipe, args.out) / MIB:.1f} MiB in {args.out}")
            print(f"go on with: python -m model.training --recipe {args.out / 'recipe.toml'} --leg-minutes 8")
        elif args.command == "split":
            parts = split(args.run, args.out, int(args.part_mib * MIB), args.most)
            print(f"{len(parts)} parts, {sum(part.stat().st_size for part in parts) / MIB:.1f} MiB in {args.out}")
        else:
            join(args.folder, args.run)
            print(f"joined in {args.run}: the same training command goes on from there")
    except (LegError, ConfigError, DataError, CheckpointError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
