"""Image sources: emoji packages, their licences, and how one icon becomes pixels.

All of them are npm packages with pinned versions, so that the same command gives the same bytes wherever npm finds a
registry. Vector sets are rendered with resvg at twice the size and scaled down with a Lanczos filter.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from model.data.captions import normalise_hexcode

CAPTIONS_PACKAGE = "emojibase-data@17.0.0"
MARGIN = 2  # white pixels around every image: the icons of some sets touch the edge


class DataError(RuntimeError):
    """The data set could not be built or read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """One style: its npm package, author and licence."""

    style: str
    package: str
    title: str
    author: str
    licence: str
    url: str


SOURCES = (
    Source("3d", "@lobehub/fluent-emoji-3d@1.1.0", "Fluent Emoji (3D)", "Microsoft Corporation", "MIT",
           "https://github.com/microsoft/fluentui-emoji"),
    Source("noto", "@iconify-json/noto@1.2.9", "Noto Emoji", "Google Inc", "Apache-2.0",
           "https://github.com/googlefonts/noto-emoji"),
    Source("twemoji", "@iconify-json/twemoji@1.2.5", "Twemoji", "Twitter, Inc and other contributors",
           "CC-BY-4.0", "https://github.com/jdecked/twemoji"),
    Source("flat", "@iconify-json/fluent-emoji-flat@1.2.6", "Fluent Emoji (flat)", "Microsoft Corporation",
           "MIT", "https://github.com/microsoft/fluentui-emoji"),
)  # fmt: skip

# Scenes use two more styles; Emoji One is version 2, the last one under a free licence.
SCENE_SOURCES = (
    *SOURCES,
    Source("blob", "@iconify-json/noto-v1@1.2.5", "Noto Emoji v1 (blobs)", "Google Inc", "Apache-2.0",
           "https://github.com/googlefonts/noto-emoji"),
    Source("emojione", "@iconify-json/emojione@1.2.3", "Emoji One 2.3", "Ranks.com Inc and the Emojitwo contributors",
           "CC-BY-4.0", "https://github.com/EmojiTwo/emojitwo"),
)  # fmt: skip
NAMES_PACKAGE = "@iconify-json/twemoji@1.2.5"  # its table of code points serves sets that have none


def fetch_package(spec: str, cache: Path) -> Path:
    """Download and unpack one npm package ("name@version") once; return its folder.

    Raises:
        DataError: npm is missing, slow or failed; the message ends with its error output.
    """
    folder = cache / spec.replace("/", "+")
    if (folder / "package.json").exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            ["npm", "pack", "--json", "--silent", "--pack-destination", str(cache.resolve()), spec],
            capture_output=True, text=True, check=True, timeout=600,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise DataError("npm is not installed: install Node.js, then run `make data` again") from error
    except subprocess.CalledProcessError as error:
        raise DataError(f"npm could not fetch {spec}: {error.stderr.strip() or error.stdout.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"npm took more than {error.timeout:g} s for {spec}: run it again") from error
    listing = json.loads(done.stdout)
    # npm 10 prints a list, npm 11 may print a mapping from name to entry
    entry = listing[0] if isinstance(listing, list) else next(iter(listing.values()))
    archive = cache / Path(entry["filename"]).name
    if not archive.exists():  # scoped names: older npm prints "@scope/name-1.tgz" but writes "scope-name-1.tgz"
        archive = cache / entry["filename"].lstrip("@").replace("/", "-")
    unpacked = folder.with_suffix(".partial")
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    (unpacked / "package").rename(folder)
    unpacked.rmdir()
    archive.unlink()
    return folder


def load_emojibase(cache: Path) -> list[dict]:
    """The English emojibase table: label, tags, group and code point of every emoji."""
    folder = fetch_package(CAPTIONS_PACKAGE, cache)
    return json.loads((folder / "en" / "data.json").read_text(encoding="utf-8"))


def open_source(source: Source, cache: Path) -> tuple[frozenset[str], Callable[[str, int], np.ndarray]]:
    """Open a style for whole images.

    Returns:
        The code points that the style has, and a function (code point, size) -> (size, size, 3) uint8 on white.
    """
    folder = fetch_package(source.package, cache)
    if (folder / "assets").is_dir():
        files = _assets(folder)
        return frozenset(files), lambda code, size: _fit(Image.open(files[code]), size)
    icons, names = _icons(folder, cache)
    return frozenset(names), lambda code, size: _fit(render_icon(icons, names[code], 2 * size), size)


def open_cutouts(source: Source, cache: Path, size: int) -> Callable[[str], Image.Image | None]:
    """Open a style for cut-outs: a function from a code point to its icon, RGBA, or None if the style has none.

    size: pixels at which vector icons are rendered; bitmaps keep their own size.
    """
    folder = fetch_package(source.package, cache)
    if (folder / "assets").is_dir():
        files = _assets(folder)
        return lambda code: Image.open(files[code]).convert("RGBA") if code in files else None
    icons, names = _icons(folder, cache)
    return lambda code: render_icon(icons, names[code], size) if code in names else None


def _assets(folder: Path) -> dict[str, Path]:
    return {normalise_hexcode(path.stem): path for path in sorted((folder / "assets").glob("*.webp"))}


def _icons(folder: Path, cache: Path) -> tuple[dict, dict[str, str]]:
    """An Iconify set, and its icons' names by code point."""
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    table = folder / "chars.json"
    chars = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    if not chars:
        chars = json.loads((fetch_package(NAMES_PACKAGE, cache) / "chars.json").read_text(encoding="utf-8"))
    return icons, {normalise_hexcode(code): name for code, name in chars.items() if name in icons["icons"]}


def render_icon(icons: dict, name: str, size: int) -> Image.Image:
    """Render an icon of an Iconify set as RGBA of `size` × `size` pixels."""
    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return render_svg(f'<svg {spaces} viewBox="0 0 {width} {height}">{icon["body"]}</svg>', size)


def render_svg(svg: str, size: int) -> Image.Image:
    """Render an SVG document as RGBA of `size` × `size` pixels."""
    import resvg_py  # heavy native module: only `make data` needs it

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _fit(image: Image.Image, size: int) -> np.ndarray:
    """Scale an RGBA image to (size, size, 3) uint8 on white, with MARGIN free pixels on every side."""
    inner = size - 2 * MARGIN
    rgba = image.convert("RGBA")
    # Composite before filtering, otherwise the colour of invisible pixels bleeds into the outline.
    canvas = Image.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    small = canvas.convert("RGB").resize((inner, inner), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (size, size), "white")
    page.paste(small, (MARGIN, MARGIN))
    return np.asarray(page)
