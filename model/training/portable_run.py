"""Pack a training run into one folder, to train on another machine.

    python -m model.training.portable_run --recipe model/recipes/atlas-128-gpu.toml --out runs/portable

copies the recipe and everything it names (data, tokenizer, initial weights, text encoder) to runs/portable. Copy
the repository with that folder in it to the other machine, and train there:

    python -m model.training --recipe runs/portable/recipe.toml --stop-after-minutes 30

The same command resumes the run. Bring its output folder (`out` in the recipe) back to resume it here: state.pt holds
weights, optimiser and clock. Where state.pt is too large to copy, bring the checkpoint alone and name it as
`start_from` in the recipe; optimiser and learning rate then start over.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from model.checkpoint import CheckpointError, load_checkpoint
from model.config import ConfigError
from model.data.atlas.store import open_sprites
from model.data.dataset import Dataset
from model.data.interrupts import interruptible
from model.data.scenes.sprites import Sprites
from model.data.sources import DataError
from model.networks.text_encoder import package_folder
from model.presets import PRESETS
from model.training.latents.store import LatentCache, is_latent_cache
from model.training.recipe import Recipe
from model.training.reconstruction.load import load_tokenizer


def pack(recipe_file: Path, out: Path) -> int:
    """Fill `out` with everything but the code that training from the recipe needs; return its size in bytes.

    Captions are encoded on the other machine: their states are often larger than the text encoder (4 GB for the
    200,000 captions of atlas-128-gpu, 91 MB for MiniLM).

    Raises:
        ConfigError: the recipe is not valid, or its tokenizer or text encoder is missing.
        DataError: the data set or the sprites are missing.
        CheckpointError: a checkpoint that the recipe names is missing or damaged.
    """
    recipe = Recipe.load(recipe_file)
    config = PRESETS[recipe.preset]
    folder = Path(recipe.data)
    data: Sprites | LatentCache | Dataset
    if recipe.scenes:
        data = open_sprites(folder)
    else:
        data = LatentCache(folder) if is_latent_cache(folder) else Dataset.load(folder)
    load_tokenizer(config, recipe.tokenizer)  # rejects what would fail on the other machine
    if recipe.start_from:
        load_checkpoint(Path(recipe.start_from))
    sources = {"tokenizer": recipe.tokenizer, "start_from": recipe.start_from, "text_encoder": recipe.text_encoder}
    if config.text.kind == "package" and not recipe.text_encoder:
        sources["text_encoder"] = str(package_folder(config.text.name))
    if _is_hub_name(recipe.text_encoder):
        del sources["text_encoder"]
    if out.is_dir() and any(out.iterdir()) and not (out / "recipe.toml").is_file():
        raise ConfigError(f"--out {out} holds other files, which a portable run would remove: choose a new folder")
    partial = out.with_name(f"{out.name}.partial")  # `out` may hold the recipe, and what it names
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(data, LatentCache):
        shutil.copytree(recipe.data, partial / "data")
    else:
        data.save(partial / "data")
    packed = {"data": partial / "data"}
    for key, source in sources.items():
        if source:
            packed[key] = _copy(Path(source), partial / key)
    text = recipe_file.read_text(encoding="utf-8")
    for key, path in packed.items():
        line = f"{key} = {json.dumps(str(out / path.relative_to(partial)))}"
        text = re.sub(rf"(?m)^{key}\s*=.*$", line.replace("\\", r"\\"), text)  # no escapes in a replacement
    (partial / "recipe.toml").write_text(text, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _is_hub_name(encoder: str) -> bool:
    """Return True for a name of the hub, which means the same on every machine, False for a folder and for "".

    Raises:
        ConfigError: it is neither.
    """
    if not encoder or Path(encoder).exists():
        return False
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", encoder):
        raise ConfigError(f"text_encoder = {encoder!r}: there is no such folder; correct its path in the recipe")
    return True


def _copy(source: Path, target: Path) -> Path:
    """Copy a folder to `target`, or a file to `target` with its own suffix."""
    if source.is_dir():
        return Path(shutil.copytree(source, target))
    return Path(shutil.copyfile(source, target.with_suffix(source.suffix)))


@interruptible("the same command starts over")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.training.portable_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", type=Path, required=True, help="TOML file that describes the run")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/portable"), help="folder to fill; replaced if it exists (%(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        size = pack(args.recipe, args.out)
    except (ConfigError, DataError, CheckpointError) as error:
        sys.exit(str(error))
    print(f"{size / 2**20:.1f} MiB in {args.out}")
    print(f"train with: python -m model.training --recipe {args.out / 'recipe.toml'}")


if __name__ == "__main__":
    main()
