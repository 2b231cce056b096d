"""Build the emoji data set, first part of `make data`: packages -> packed images and captions, same bytes every time.

    python -m model.data.build                                     data/emoji-64, which emoji-64 was trained on
    python -m model.data.build --size 32 --out data/emoji-32       smaller images

Splits: every concept that all four styles have is used. The vocabulary's pairs are `train`, except 5 % of the
(concept, style) pairs that are `heldout`: their concept is trained in the other styles only. Concepts outside the
vocabulary are `tokenizer`, except 50 that nothing ever trains on: `unseen`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from model.data.captions import STYLES, Concept, all_concepts, captions, in_vocabulary, normalise_hexcode
from model.data.contact_sheet import contact_sheet
from model.data.dataset import Dataset, Item
from model.data.interrupts import interruptible
from model.data.sources import CAPTIONS_PACKAGE, MARGIN, SOURCES, DataError, load_emojibase, open_source

HELDOUT_SHARE = 0.05
UNSEEN_CONCEPTS = 50
SPLIT_SEED = 20241017


def assign_splits(vocabulary: list[Concept], rest: list[Concept]) -> dict[tuple[str, str], str]:
    """Assign a split to each (hexcode, style); a pure function of the two lists.

    A concept loses at most one style to `heldout`, so that it is trained in three other styles.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    count = round(HELDOUT_SHARE * len(vocabulary) * len(STYLES))
    holders = rng.permutation(len(vocabulary))[:count]
    split = {(c.hexcode, style): "train" for c in vocabulary for style in STYLES}
    for position, index in enumerate(holders):
        split[vocabulary[index].hexcode, STYLES[position % len(STYLES)]] = "heldout"
    unseen = set(rng.permutation(len(rest))[:UNSEEN_CONCEPTS].tolist())
    for index, concept in enumerate(rest):
        for style in STYLES:
            split[concept.hexcode, style] = "unseen" if index in unseen else "tokenizer"
    return split


def build(size: int, cache: Path, progress: bool = True) -> Dataset:
    """Fetch the packages, choose concepts and render them; writes nothing but the package cache.

    Args:
        size: side of the square images, pixels.
        cache: folder for downloaded packages.

    Raises:
        DataError: a package could not be fetched.
    """
    emojibase = load_emojibase(cache)
    drawers = {source.style: open_source(source, cache) for source in SOURCES}
    drawable = frozenset.intersection(*(codes for codes, _ in drawers.values()))
    group = {normalise_hexcode(e["hexcode"]): e["group"] for e in emojibase if "group" in e}
    concepts = [c for c in all_concepts(emojibase) if c.hexcode in drawable]
    vocabulary = [c for c in concepts if in_vocabulary(c, group[c.hexcode])]
    rest = [c for c in concepts if not in_vocabulary(c, group[c.hexcode])]
    split = assign_splits(vocabulary, rest)

    images, items = [], []
    for concept in tqdm(vocabulary + rest, desc="render", unit="concept", disable=not progress):
        for style in STYLES:
            images.append(drawers[style][1](concept.hexcode, size))
            item = Item(concept.label, style, tuple(captions(concept, style)), split[concept.hexcode, style])
            items.append(item)
    dataset = Dataset(np.stack(images), items, {})
    dataset.about = {
        "name": f"emoji-{size}",
        "image_size": size,
        "pictures": len(items),
        "vocabulary": len(vocabulary),
        "splits": dict(Counter(item.split for item in items)),
        "captions": {"package": CAPTIONS_PACKAGE, "licence": "MIT"},
        "sources": [
            {"style": s.style, "title": s.title, "author": s.author, "licence": s.licence, "url": s.url,
             "package": s.package} for s in SOURCES
        ],
        "sha256": dataset.digest(),
    }  # fmt: skip
    return dataset


def sample_sheet(dataset: Dataset, columns: int = 16, rows: int = 8) -> Image.Image:
    """A contact sheet of evenly spaced training images, to check by eye that rendering worked."""
    train = dataset.indices("train")
    chosen = train[np.linspace(0, len(train) - 1, columns * rows).astype(int)]
    return contact_sheet(
        [dataset.images[i] for i in chosen],
        [f"{dataset.items[i].concept} · {dataset.items[i].style}" for i in chosen],
        columns=columns,
    )


@interruptible("the same command starts over, with the packages that have been fetched")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.data.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/emoji-64"), help="folder for the packed data set (%(default)s)"
    )
    parser.add_argument("--size", type=int, default=64, help="side of the square images, pixels (%(default)s)")
    parser.add_argument(
        "--cache", type=Path, default=Path("data/npm"), help="folder for downloaded packages (%(default)s)"
    )
    args = parser.parse_args(argv)
    if args.size <= 2 * MARGIN:
        parser.error(f"--size {args.size} leaves no pixel between margins of {MARGIN}: choose {2 * MARGIN + 1} or more")
    try:
        dataset = build(args.size, args.cache)
    except DataError as error:
        sys.exit(f"nothing was written to {args.out}: {error}")
    dataset.save(args.out)
    sample_sheet(dataset).save(args.out / "sheet.png")
    print(f"{dataset.about['pictures']} images of {args.size} px in {args.out}")
    for split, count in dataset.about["splits"].items():
        print(f"  {split:10s} {count:6d}")
    for source in dataset.about["sources"]:
        print(f"  {source['style']:10s} {source['title']} by {source['author']}, {source['licence']}")
    print(f"  captions   {CAPTIONS_PACKAGE}, MIT")
    print(f"  sha256     {dataset.about['sha256']}")
    print(f"  look at    {args.out / 'sheet.png'}")


if __name__ == "__main__":
    main()
