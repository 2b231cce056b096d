"""Build the atlas, third part of `make data`: sprites of scenes, and a breadth of named things, each drawn alone.

    python -m model.data.build_atlas                   data/atlas, which atlas-128 was trained on

Needs npm, Node.js and apt. Packages of npm are pinned by version, clip art by a digest of its drawings. A source that
cannot be fetched, or clip art that has changed, ends the build with exit status 1 and nothing written. about.json has
the SHA-256 of the result, and one of each style in "digests": where one differs from that of another build, such as the
one in a checkpoint's config.json, its source has changed, or is rendered otherwise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from model.data.atlas.assemble import assemble
from model.data.atlas.atlas_bank import AtlasBank, build_atlas_bank
from model.data.atlas.collect import collect
from model.data.atlas.store import AtlasSprites
from model.data.contact_sheet import contact_sheet
from model.data.interrupts import interruptible
from model.data.scenes.build_sprites import build_sprites
from model.data.scenes.things import STYLES, THINGS
from model.data.sources import DataError


def sample_sheet(atlas: AtlasSprites, file: Path, columns: int = 12, rows: int = 12) -> AtlasBank:
    """Write a sheet to check by eye: a third scenes, the rest single things; return the bank it shows."""
    bank = build_atlas_bank(atlas, tuple(THINGS), STYLES, columns * rows // 3, snap=16, seed=0)
    singles = np.linspace(bank.scenes, len(bank) - 1, columns * rows - bank.scenes).astype(int)
    chosen = [*range(bank.scenes), *singles.tolist()]
    images = [image[..., :3] for image in bank.images(chosen, visit=0)]
    contact_sheet(images, [bank.captions[row] for row in chosen], columns=columns).save(file)
    return bank


@interruptible("the same command starts over, with the packages that have been fetched")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.data.build_atlas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("data/atlas"), help="folder to write (%(default)s)")
    parser.add_argument(
        "--cache", type=Path, default=Path("data/npm"), help="folder for downloaded packages (%(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        atlas = assemble(build_sprites(args.cache), collect(args.cache))
    except DataError as error:
        sys.exit(f"nothing was written to {args.out}: {error}")
    atlas.save(args.out)
    sample_sheet(atlas, args.out / "sheet.png")
    about = atlas.about
    print(
        f"{about['breadth']} cut-outs of {about['nouns']} things, {about['nouns_in_two_styles']} in two styles or more"
    )
    print(f"  dropped    {about['repeated']} repeated, {about['across_the_line']} too near to held-out images")
    for source in about["sources"]:
        print(f"  {source['style']:15s} {source['title']} by {source['author']}, {source['licence']}")
    print(f"  sha256     {about['sha256']}")
    print(f"  look at    {args.out / 'sheet.png'}")


if __name__ == "__main__":
    main()
