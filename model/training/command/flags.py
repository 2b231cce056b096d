"""Flags that several trainers have, and the types of their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from model.config import ConfigError


def whole_number(least: int) -> Callable[[str], int]:
    """The type of a flag for whole numbers from `least` up."""

    def parse(text: str) -> int:
        if not text.strip().removeprefix("-").isdecimal() or (number := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {least} or more")
        return number

    return parse


def amount(text: str) -> float:
    """The type of a flag for finite numbers from 0 up."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number, 0 or more")
    return number


def share(text: str) -> float:
    """The type of a flag for numbers from 0 to 1."""
    if (number := amount(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return number


def check_out(out: Path, *read: Path | str) -> None:
    """Raise ConfigError if a command would write its checkpoint over one of those that it reads."""
    if out.resolve() in (Path(each).resolve() for each in read):
        raise ConfigError(f"{out}, which would be written, is one of those that are read: choose another out")


def add_budget_arguments(parser: argparse.ArgumentParser, minutes: float, steps: int, batch: int) -> None:
    """Add --minutes, --steps, --batch and --seed, with these defaults, to a trainer's command line."""
    parser.add_argument(
        "--minutes", type=amount, default=minutes, help="time budget; 0: by --steps alone (%(default)s)"
    )
    parser.add_argument("--steps", type=whole_number(1), default=steps, help="maximum number of steps (%(default)s)")
    parser.add_argument("--batch", type=whole_number(1), default=batch, help="images per step (%(default)s)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed of all random numbers (%(default)s)")
