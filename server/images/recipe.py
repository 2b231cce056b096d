"""A picture's own recipe as a request: `fluid generate --like picture.png`, and `like` of the clients."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server import __version__
from server.errors import InvalidRequest
from server.images.codec import read_metadata
from server.jobs import JobInput
from server.sampling import SAMPLING_FIELDS

#: What decides the picture; `quality` is only a name for the steps, but belongs into the new file as well.
FIELDS = (
    "prompt", "model", "size", "quality", "seed", *SAMPLING_FIELDS,
)  # fmt: skip


def load_recipe(path: Path) -> dict[str, Any]:
    """Of a file on this machine. Raises InvalidRequest."""
    try:
        return read_recipe(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"--like {path}: {error.strerror}.", param="like") from error


def read_recipe(file: bytes) -> dict[str, Any]:
    """What a file says of its making.

    Raises:
        InvalidRequest: it says nothing, or was made from another picture, which is not in it.
    """
    try:
        recipe = read_metadata(file)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's kinds, and JSON's
        raise InvalidRequest(f"The picture cannot be read: {error}.", param="like") from error
    if recipe is None or "seed" not in recipe:
        raise InvalidRequest(
            "The picture does not say how it was made. Programs that save it again often drop that; take the original.",
            param="like",
        )
    for kind in ("edit", "variation"):
        if kind in recipe:
            raise InvalidRequest(
                f"The picture is the {kind} of another one, which is not in the file. Repeat it from that picture "
                f"with the seed {recipe['seed']}: POST /v1/images/{kind}s.",
                param="like",
            )
    return recipe


def request_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The request that draws it again."""
    return {name: recipe[name] for name in FIELDS if recipe.get(name) is not None}


def difference(recipe: Mapping[str, Any], checkpoint_sha256: str) -> list[str]:
    """What stands in the way of the same picture, in words."""
    then = str(recipe.get("checkpoint_sha256") or "unknown")
    if then == checkpoint_sha256:
        return []
    return [
        f"The picture was drawn by checkpoint {then[:12]}, this one is by {checkpoint_sha256[:12]}: it will differ."
    ]


def served_difference(recipe: Mapping[str, Any], models: list[dict[str, Any]]) -> list[str]:
    """The same for a service, by its list of models."""
    for model in models:
        if model["id"] == recipe.get("model"):
            return difference(recipe, str(model["checkpoint_sha256"]))
    return []


def recipe(job: JobInput, index: int, checkpoint_sha256: str) -> dict[str, Any]:
    """Everything that is needed to draw this one picture again; goes into the file. An edit needs its picture, too."""
    started_from = {} if job.edit is None else {job.edit.kind: job.edit.recipe()}
    return {
        **started_from,
        "prompt": job.prompt,
        "seed": job.seed_of(index),
        "size": f"{job.width}x{job.height}",
        "quality": job.quality,
        **asdict(job.sampling),
        "model": job.model,
        "checkpoint_sha256": checkpoint_sha256,
        "software": f"fluid-serve {__version__}",
    }
