"""Clip art from the Open Clip Art Library (public domain): a seventh style that was drawn by many hands.

It comes as a Debian package, so building it needs apt and dpkg. Each file below was chosen by eye.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

from PIL import Image

from model.data.sources import DataError, Source, render_svg

CLIPART = Source(
    "clipart", "openclipart-svg (Debian)", "Open Clip Art Library 0.18", "its contributors", "public domain",
    "https://openclipart.org",
)  # fmt: skip
SVG_FOLDER = "usr/share/openclipart/svg"
# Of the chosen files, in the order of their things\' names.
SHA256 = "bcab334faceb0dbc6fe9d5d0d6b0de84797728d0327076aefcade1a9c81e11fa"
UNITS = {"mm": 3.5433, "cm": 35.433, "in": 90.0, "pt": 1.25}  # pixels, at Inkscape's 90 to the inch

# Thing -> drawing.
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


def fetch_clipart(cache: Path) -> Path:
    """Download and unpack the package once; return the folder of its drawings.

    Raises:
        DataError: there is no apt here, it refused, or the chosen drawings are not those that were looked at.
    """
    folder = cache / "openclipart"
    if not (folder / SVG_FOLDER).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "openclipart-svg"], cwd=folder, capture_output=True, text=True,
                           check=True, timeout=600)  # fmt: skip
            archive = next(folder.glob("openclipart-svg*.deb"))
            subprocess.run(["dpkg-deb", "--extract", archive, folder], capture_output=True, text=True, check=True)
            archive.unlink()
        except FileNotFoundError as error:
            raise DataError("clip art comes as a Debian package, and this machine has no apt and dpkg") from error
        except subprocess.CalledProcessError as error:
            raise DataError(f"apt could not fetch openclipart-svg: {error.stderr.strip()[-300:]}") from error
    digest = hashlib.sha256()
    for thing in sorted(FILES):
        file = folder / SVG_FOLDER / FILES[thing]
        digest.update(file.read_bytes() if file.exists() else b"")
    if digest.hexdigest() != SHA256:
        raise DataError(
            f"{folder} holds other drawings than those that were chosen; remove it and run `make data` again"
        )
    return folder / SVG_FOLDER


def draw_clipart(folder: Path, thing: str, size: int) -> Image.Image:
    """RGBA of `size` × `size` pixels."""
    svg = (folder / FILES[thing]).read_text(encoding="utf-8", errors="replace")
    opening = re.search(r"<svg[^>]*>", svg)
    if opening is None:
        raise DataError(f"{FILES[thing]} is no SVG; remove {folder} and run `make data` again")
    return render_svg(svg.replace(opening[0], _in_pixels(opening[0])), size)


def _in_pixels(tag: str) -> str:
    """Old drawings have sizes like 210mm and no viewBox, which the renderer refuses."""
    return re.sub(
        rf'\b(width|height)="([\d.]+)({"|".join(UNITS)})"',
        lambda size: f'{size[1]}="{float(size[2]) * UNITS[size[3]]:.2f}"',
        tag,
    )
