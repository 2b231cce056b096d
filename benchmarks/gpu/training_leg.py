"""A leg of training through the real trainer: images a second, share of the time spent waiting for data, the loss.

Without --recipe the images are coloured squares and the text encoder has random weights, because a borrowed machine
has neither data nor downloads: everything else is a recipe as it stands, so the speed is right and the
checkpoint is of no use. `python -m model.training.portable_run` packs a real recipe for --recipe.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from benchmarks.gpu.parts import Emit, attempt
from model.config import TextConfig
from model.data.dataset import Dataset, Item
from model.networks.factory import new_tokenizer
from model.presets import PRESETS
from model.training.recipe import Recipe
from model.training.train import run_recipe

RECIPE = Path(__file__).parents[2] / "model" / "recipes" / "emoji-64.toml"
START_S = 60.0  # for encoding, compiling, the last sheet and the checkpoint


def limit_s(minutes: float) -> float:
    """Time limit of the part."""
    return 60 * minutes + START_S


def bench_training(args: argparse.Namespace, emit: Emit) -> None:
    """Train for --train-minutes; the state goes to a temporary folder, unless --recipe names its own."""
    with tempfile.TemporaryDirectory() as scratch, attempt(emit, {"recipe": str(args.recipe or RECIPE.name)}) as record:
        until = time.monotonic() + 60 * args.train_minutes + START_S / 2
        recipe = Recipe.load(args.recipe or RECIPE, **overrides(args, Path(scratch)))
        began = time.monotonic()
        run_recipe(recipe, until)
        history = json.loads((Path(recipe.out) / "history.json").read_text())  # [step, seconds, loss] at each save
        record |= {"batch": recipe.batch, "compile": recipe.compile, "steps": history[-1][0]}
        record |= {"training_s": round(history[-1][1], 1), "start_and_end_s": time.monotonic() - began - history[-1][1]}
        (step, second, _), (last, end, _) = history[len(history) // 2 - 1], history[-1]  # without the compilation
        if last > step:
            record["images_per_s"] = recipe.batch * (last - step) / max(end - second, 1e-9)
        record["losses"] = [round(loss, 4) for _, _, loss in history][-20:]


def overrides(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Keys of the recipe that differ here."""
    if args.recipe:
        return {"minutes": args.train_minutes, "anneal_minutes": 0.0}  # anneal_from decides: of so short a leg no phase
    config = PRESETS["emoji-64"]
    squares(config.image_size, 64 if args.quick else 2048).save(scratch / "data")
    random_encoder(config.text, scratch / "encoder")
    save_file(new_tokenizer(config).state_dict(), scratch / "tokenizer.safetensors")
    small = {"batch": 4, "steps": 4, "save_every": 1, "compile": False} if args.quick else {"save_every": 50}
    return {
        "data": str(scratch / "data"), "text_encoder": str(scratch / "encoder"), "out": str(scratch / "out"),
        "tokenizer": str(scratch / "tokenizer.safetensors"),
        "minutes": args.train_minutes, "sheet_every": 1_000_000, **small,
    }  # fmt: skip


def squares(size: int, count: int) -> Dataset:
    """Coloured squares with captions that are true."""
    colours = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "black": (10, 10, 10)}
    images = np.full((count, size, size, 3), 255, np.uint8)
    items = []
    for image, (name, rgb), place in zip(images, itertools.cycle(colours.items()), range(count), strict=False):
        left = place * 7 % (size // 2)
        image[size // 4 : size // 2, left : left + size // 3] = rgb
        caption = f"a {name} square, flat style"
        items.append(Item(f"{name} square {place}", "flat", (caption,) * 4, "train"))
    return Dataset(images, items, {"name": "squares"})


def random_encoder(text: TextConfig, folder: Path) -> None:
    """Write an encoder of MiniLM's sizes with random weights, and a tokenizer of single characters."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = BertConfig(
        vocab_size=30522, hidden_size=text.dim, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=4 * text.dim,
    )  # fmt: skip
    BertModel(sizes).save_pretrained(folder)
