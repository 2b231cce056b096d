"""Flags that several commands share."""

import argparse
from typing import Any


def _command(commands: Any, name: str, help: str, epilog: str = "") -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return added


def _model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="checkpoint name or folder (FLUID_CHECKPOINT)")
    parser.add_argument("--device", help="auto, cpu or cuda (FLUID_DEVICE)")


def _address_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (FLUID_HOST)")
    parser.add_argument("--port", help="port to listen on (FLUID_PORT)")
