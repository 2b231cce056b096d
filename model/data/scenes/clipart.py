"""Clip art from the Open Clip Art Library (public domain): a seventh style, by many artists.

It comes as a Debian package, so fetching it needs apt and dpkg. Each file below was chosen by eye.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from PIL import Image

from model.data.sources import DataError, Source, render_svg

CLIPART = Source(
    "clipart", "openclipart-svg (Debian)", "Open Clip Art Library 0.18", "its contributors", "public domain",
    "https://openclipart.org",
)  # fmt: skip
SVG_FOLDER = "usr/share/openclipart/svg"
UNITS = {"mm": 3.5433, "cm": 35.433, "in": 90.0, "pt": 1.25}  # pixels per unit, at Inkscape's 90 per inch

# Thing -> file of its drawing.
FILES = {
    "apple": "food/fruit/apple.svg",
    "banana": "food/fruit/banana.svg",
    "strawberry": "food/fruit/strawberry.svg",
    "lemon": "food/fruit/lemon.svg",
    "watermelon": "food/fruit/watermelon_simple.svg",
    "mushroom": "plants/mushroom.svg",
    "hamburger": "food/meats_and_eggs/chicken_burger.svg",
    "cat": "animals/mammals/cartoon_cat_gerald_g._01.svg",
    "dog": "animals/mammals/dog_01_drawn_with_strai_01.svg",
    "bear": "recreation/toys/simple_teddy_bear_gerald_01.svg",
    "pig": "animals/mammals/pig_marcelo_caiafa1.svg",
    "fish": "animals/fish/brown_fish_01.svg",
    "butterfly": "animals/bugs/farfalla_butterfly_fra1.svg",
    "ladybug": "animals/bugs/ladybug_01.svg",
    "penguin": "animals/birds/new_penguin_charles_mcco_01.svg",
    "turtle": "animals/turtle_jurgen_gaeremyn_01.svg",
    "car": "transportation/vehicles/car.svg",
    "rocket": "transportation/vehicles/rocket.svg",
    "sailboat": "transportation/boating/boat_jarno_vasamaa_.svg",
    "house": "buildings/homes/home14.svg",
    "star": "shapes/star_double_tom_webb_.svg",
    "heart": "recreation/holiday/valentines/heart.svg",
    "guitar": "recreation/music/guitar_jarno_vasamaa1.svg",
    "balloon": "recreation/party/balloon-blue-aj.svg",
    "umbrella": "tools/umbrella.svg",
    "gift": "recreation/holiday/gift01.svg",
    "soccer ball": "recreation/sports/soccer_ball_ganson.svg",
    "snowman": "recreation/holiday/snowman_01.svg",
    "light bulb": "electronics/bulb/lightbulb_brightlit_benj_.svg",
    "pizza": "food/pizza_cheese.svg",
    "grapes": "food/fruit/grapes_simple.svg",
    "cherries": "food/fruit/cherries.svg",
    "pear": "food/fruit/pear_simple.svg",
    "chicken": "animals/birds/hen_01.svg",
    "tiger": "animals/mammals/big_cats/tiger_graig_ryan_smith_-_01.svg",
    "monkey": "animals/mammals/happy_monkey_benji_park_01.svg",
    "bicycle": "transportation/vehicles/bicycle_01.svg",
    "fire engine": "people/fire_engine_mimooh_01.svg",
    "anchor": "transportation/anchor.svg",
    "trumpet": "recreation/music/trumpet_b_flat_colour_ganso.svg",
    "violin": "recreation/music/violin_colour_ganson.svg",
    "camera": "computer/hardware/digital-camera_aj_ashton_01.svg",
    "hammer": "tools/hammer_peterm1.svg",
    "pencil": "education/pencil_benji_park_01.svg",
    "trophy": "signs_and_symbols/awards/trophy.svg",
    "gem": "signs_and_symbols/money/diamond_juliane_krug_01.svg",
    "sun": "signs_and_symbols/weather/sun01.svg",
    "moon": "signs_and_symbols/weather/moon02.svg",
    "Christmas tree": "plants/trees/evergreen/christmas_tree_01.svg",
    "alien": "people/alien_peterm_01.svg",
    "lollipop": "food/desserts/lollipop_dave_pena_01.svg",
}
# Thing -> first 16 digits of the file's SHA-256: one per file, so that removing a drawing removes its checksum too.
SHA256 = {
    "apple": "dd9ebef4221403ed", "banana": "8d1d37396785315d", "strawberry": "48b40897d009fa71",
    "lemon": "ab746623c98d5300", "watermelon": "3cf5a3717ceeb1fe", "mushroom": "6d5845c2178b12c7",
    "hamburger": "5a19884047ee6852", "cat": "2e7807b9cce77028", "dog": "19f96132de53b085", "bear": "69b6b61a8a9ef66f",
    "pig": "43af38328185ce9a", "fish": "f6f89d09d58e3e09", "butterfly": "87fa03dcdfd5db92",
    "ladybug": "134f2cb4fc8fcbef", "penguin": "00a1cb01b3f49ed3", "turtle": "63e4e43b126c0531",
    "car": "71f0b6bd62726158", "rocket": "6afcbf4a8b4a963a", "sailboat": "6eb1ed87f2a3de4b",
    "house": "aff437565a9fb69a", "star": "130078bb1ca12da9", "heart": "aea28fb9b5c5cb89", "guitar": "08e9a1a22e684c6d",
    "balloon": "54f1c967e239de9b", "umbrella": "a6cb2fad57842840", "gift": "99a6b97cf8f05efc",
    "soccer ball": "94ce2ef8e4859d74", "snowman": "a914659586985522", "light bulb": "ea75d6ac307272e0",
    "pizza": "6839f34d61b3c2d1", "grapes": "babadeeb0926ca3f", "cherries": "db02ebd8ab1c2c1a",
    "pear": "d10eb8a5497cebb1", "chicken": "bcd66355546cde66", "tiger": "9211c3dc08d07dd8",
    "monkey": "b762057118c5d717", "bicycle": "acb667ba666e78fe", "fire engine": "95766fd67c05a980",
    "anchor": "28797d949babc049", "trumpet": "e82d5e7d7b8a6345", "violin": "27da4f5dc5162405",
    "camera": "fc844b641bd76b64", "hammer": "3bd30cf1afc4fce8", "pencil": "dd84448542a1cb5a",
    "trophy": "81389d0f93dd74ad", "gem": "e960ea645fd9d872", "sun": "67446421eae7c132", "moon": "bffde7d7c222fd5d",
    "Christmas tree": "21d1bb06ad148876", "alien": "7ac024b81d4a51ae", "lollipop": "05cbb45788a2f7e5",
}  # fmt: skip


class MissingToolError(DataError):
    """This machine lacks a program that the source needs: the only reason to build without that source."""


def fetch_clipart(cache: Path) -> Path:
    """Download and unpack the package once; return the folder of its drawings.

    Raises:
        MissingToolError: this machine has no apt or dpkg.
        DataError: apt failed, or drawings differ from the chosen ones; names each of them with both checksums.
    """
    folder = cache / "openclipart"
    if not (folder / SVG_FOLDER).is_dir():
        partial = cache / "openclipart.partial"  # a kill in the middle leaves no half of a package
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            subprocess.run(["apt-get", "download", "openclipart-svg"], cwd=partial, capture_output=True, text=True,
                           check=True, timeout=600)  # fmt: skip
            archive = next(partial.glob("openclipart-svg*.deb"))
            subprocess.run(["dpkg-deb", "--extract", archive, partial], capture_output=True, text=True, check=True)
            archive.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
        except FileNotFoundError as error:
            raise MissingToolError("clip art comes as a Debian package, and this machine has no apt or dpkg") from error
        except subprocess.CalledProcessError as error:
            raise DataError(f"{error.cmd[0]} could not fetch openclipart-svg: {error.stderr.strip()[-300:]}") from error
        except subprocess.TimeoutExpired as error:
            raise DataError(f"apt took more than {error.timeout:g} s for openclipart-svg: run it again") from error
    if wrong := differences(folder / SVG_FOLDER):
        raise DataError(
            f"{len(wrong)} of {len(FILES)} drawings in {folder} differ from the chosen ones; remove it and run "
            f"`make data` again. {'; '.join(wrong)}"
        )
    return folder / SVG_FOLDER


def differences(folder: Path) -> list[str]:
    """Drawings in `folder` that differ from the chosen ones, each with the expected and the actual checksum."""
    wrong = []
    for thing, name in FILES.items():
        file = folder / name
        found = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else "nothing"
        if found != SHA256[thing]:
            wrong.append(f"{name}: expected {SHA256[thing]}, got {found}")
    return wrong


def render_clipart(folder: Path, thing: str, size: int) -> Image.Image:
    """Render a thing's drawing as RGBA of `size` × `size` pixels.

    Raises:
        DataError: the file is not an SVG.
    """
    return render_drawing(folder / FILES[thing], size)


def render_drawing(file: Path, size: int) -> Image.Image:
    """Render a drawing of the library as RGBA of `size` × `size` pixels.

    Raises:
        DataError: the file is not an SVG.
    """
    svg = file.read_text(encoding="utf-8", errors="replace")
    opening = re.search(r"<svg[^>]*>", svg)
    if opening is None:
        raise DataError(f"{file} is not an SVG; remove the package's folder and run `make data` again")
    return render_svg(svg.replace(opening[0], _in_pixels(opening[0])), size)


def _in_pixels(tag: str) -> str:
    """Convert the sizes of an <svg> tag to pixels: the renderer rejects old ones, such as 210mm without a viewBox."""
    return re.sub(
        rf'\b(width|height)="([\d.]+)({"|".join(UNITS)})"',
        lambda size: f'{size[1]}="{float(size[2]) * UNITS[size[3]]:.2f}"',
        tag,
    )
