"""Build the sprites of composed scenes, second part of `make data`: emoji packages -> packed cut-outs.

    python -m model.data.build_scenes                                   six styles, as for the shipped checkpoint
    python -m model.data.build_scenes --more --out data/scenes-more     with clip art, portraits, tags

Scenes are composed from the sprites during training (model/data/scenes); the packed sprites are a few megabytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from model.data.contact_sheet import contact_sheet
from model.data.interrupts import interruptible
from model.data.scenes.bank import build_bank
from model.data.scenes.build_sprites import add_optional_sprites, build_sprites
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import COMMON
from model.data.sources import DataError


def sample_sheet(sprites: Sprites, out: Path, columns: int = 8, rows: int = 6) -> None:
    """Write sheet.png, scenes to check composition by eye, and sheet.jsonl, the content of each scene."""
    more = 0.25 if sprites.about.get("portraits") else 0.0
    bank = build_bank(sprites, COMMON, sprites.styles, columns * rows, snap=4, seed=0, portraits=more, tags=more)
    images = list(bank.images(range(len(bank)), visit=0))
    contact_sheet(images, bank.captions, columns=columns).save(out / "sheet.png")
    lines = [{"caption": c, **bank.scene(row, visit=0).to_json()} for row, c in enumerate(bank.captions)]
    (out / "sheet.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@interruptible("the same command starts over, with the packages that have been fetched")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.data.build_scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/scenes"), help="folder for the packed sprites (%(default)s)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("data/npm"), help="folder for downloaded packages (%(default)s)"
    )
    parser.add_argument(
        "--more", action="store_true", help="add clip art (needs apt), portraits (needs Node.js) and tags"
    )
    args = parser.parse_args(argv)

    try:
        sprites, left_out = build_sprites(args.cache), list[str]()
        if args.more:
            sprites, left_out = add_optional_sprites(sprites, args.cache)
    except DataError as error:
        sys.exit(f"nothing was written to {args.out}: {error}")
    sprites.save(args.out)
    sample_sheet(sprites, args.out)
    about = sprites.about
    print(
        f"{about['sprites']} sprites of {about['things']} things, {len(sprites.colourable)} of which may be recoloured"
    )
    for source in about["sources"]:
        print(f"  {source['style']:10s} {source['title']} by {source['author']}, {source['licence']}")
    print(f"  sha256     {about['sha256']}")
    for why in left_out:
        print(f"  LEFT OUT   {why}")
    print(f"  look at    {args.out / 'sheet.png'}")


if __name__ == "__main__":
    main()
