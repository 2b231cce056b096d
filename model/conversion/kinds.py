"""`fluid import`: the kinds of published weights, and the conversion of one into a checkpoint folder.

A new kind is a module with `recognises` and `convert`, and an entry of KINDS.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fluid_kernels.allocation import is_out_of_memory
from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.conversion import import_autoencoder, import_mar, import_nova
from model.conversion.discrete import import_amused, import_janus, import_llamagen, import_meissonic
from model.conversion.options import Options


@dataclass(frozen=True)
class Kind:
    """One kind of published weights.

    Attributes:
        looks_for: what `recognises` looks for, in words.
        recognises: True if the source, a file or a folder that exists, is of this kind. It reads names, not weights.
        convert: convert(source, folder, options) writes a checkpoint into the empty `folder` and returns a prompt to
            try it with. It raises CheckpointError or ConfigError, naming the first thing that does not fit; other
            errors are those of odd files, which `import_weights` names.
    """

    name: str
    looks_for: str
    recognises: Callable[[Path], bool]
    convert: Callable[[Path, Path, Options], str]


KINDS = (
    Kind("mar", import_mar.LOOKS_FOR, import_mar.recognises, import_mar.convert),
    Kind("nova", import_nova.LOOKS_FOR, import_nova.recognises, import_nova.convert),
    Kind("amused", import_amused.LOOKS_FOR, import_amused.recognises, import_amused.convert),
    Kind("meissonic", import_meissonic.LOOKS_FOR, import_meissonic.recognises, import_meissonic.convert),
    Kind("janus", import_janus.LOOKS_FOR, import_janus.recognises, import_janus.convert),
    Kind("autoencoder", import_autoencoder.LOOKS_FOR, import_autoencoder.recognises, import_autoencoder.convert),
    Kind("llamagen", import_llamagen.LOOKS_FOR, import_llamagen.recognises, import_llamagen.convert),
)  # fmt: skip


def find_kind(source: Path, name: str | None = None) -> Kind:
    """The kind of `source`: the one of this name, or the only one that recognises it.

    Raises:
        CheckpointError: the name is unknown, the source does not exist, or none or several recognise it.
    """
    names = ", ".join(kind.name for kind in KINDS)
    if name is not None:
        found = [kind for kind in KINDS if kind.name == name]
        if not found:
            raise CheckpointError(f"kind {name!r} is not known; there are {names}")
        return found[0]
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; give the downloaded file or folder")
    found = [kind for kind in KINDS if kind.recognises(source)]
    if not found:
        listed = "".join(f"\n  {kind.name:<10} {kind.looks_for}" for kind in KINDS)
        raise CheckpointError(f"{source} is of no kind that can be imported. Each looks for:{listed}")
    if len(found) > 1:
        both = " and ".join(kind.name for kind in found)
        raise CheckpointError(f"{source} could be {both}; choose one with --kind")
    return found[0]


def import_weights(source: Path, target: Path, kind: str | None = None, options: Options | None = None) -> str:
    """Convert `source` to the checkpoint folder `target`, which appears only once it is complete.

    Args:
        kind: name of an entry of KINDS; None: found by looking at the source.
    Returns:
        A prompt to try the checkpoint with.
    Raises:
        CheckpointError, ConfigError: `target` exists, or something does not fit; `target` is not created.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists already; choose another name or remove it first")
    chosen = find_kind(source, kind)
    with _all_or_nothing(target) as folder, _named(source):
        return chosen.convert(source, folder, options or Options())


@contextmanager
def _named(source: Path) -> Iterator[None]:
    """Name the source of what a conversion raises on files that can be read and yet are not as published.

    Raises:
        CheckpointError: that one. Errors that name their fault, and those of disks and missing packages, pass.
    """
    try:
        yield
    except (CheckpointError, ConfigError, OSError, ImportError):
        raise
    except Exception as error:  # of any library that reads the files
        reason = str(error).partition("\n")[0]
        if is_out_of_memory(error):
            raise CheckpointError(f"{source} does not fit into memory ({reason}); use a machine with more") from error
        raise CheckpointError(
            f"{source} does not fit: {type(error).__name__}: {reason}; download it again, or choose another --kind"
        ) from error


@contextmanager
def _all_or_nothing(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target`; rename it to `target` at the end, or delete it if there was an exception."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private to the user
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
