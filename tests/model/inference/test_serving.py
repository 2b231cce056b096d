"""Snapshots of the shipped model as the service stores them: a resumed image is the same image."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from model.checkpoint import save_checkpoint
from model.inference import requests
from model.inference.load import load_engine
from model.inference.requests import EngineError
from model.inference.serving import ServingEngine
from model.networks.autoregressive_model import Fluid
from model.networks.factory import new_tokenizer
from model.presets import PRESETS
from server.images.compositing import KnownPixels
from server.sampling import Sampling
from server.worker.engine.protocol import RowRequest

REQUEST = RowRequest(
    prompt="a red apple, 3d style", seed=11,
    sampling=Sampling(
        num_inference_steps=6, diffusion_steps=4, guidance_scale=3.0, guidance_schedule="linear", temperature=0.9,
    ),
)  # fmt: skip
SHORTER = replace(REQUEST, sampling=replace(REQUEST.sampling, num_inference_steps=1))


def test_service_and_model_have_the_same_sampling_parameters() -> None:
    """Two definitions, because the gateway's image has no model; the loader's types only compare them by name."""
    ours, models = ({f.name for f in fields(kind)} for kind in (Sampling, requests.Sampling))
    assert ours == models


@pytest.fixture(scope="module")
def engines() -> tuple[ServingEngine, ServingEngine]:
    """Two workers with the same checkpoint."""
    one, other = (load_engine("atlas-128", max_rows=2, device="cpu", threads=1) for _ in range(2))
    return one, other


def _finish(engine: ServingEngine, row: int) -> bytes:
    while row not in engine.step():
        pass
    image = engine.image(row)
    engine.release(row)
    return image


@pytest.mark.parametrize("step", [1, 3, 5])
def test_another_worker_resumes_to_the_same_bytes(engines: tuple[ServingEngine, ServingEngine], step: int) -> None:
    """A resume after a crash must not show in the image, whenever the snapshot was taken."""
    one, other = engines
    [row] = one.admit([REQUEST])
    for _ in range(step):
        one.step()
    state = one.snapshot(row)
    assert len(state) < 20 * 1024
    expected = _finish(one, row)
    resumed = other.restore(REQUEST, state)
    assert other.progress(resumed) == (step, 6)
    assert _finish(other, resumed) == expected


def test_a_snapshot_that_does_not_fit_is_rejected(engines: tuple[ServingEngine, ServingEngine]) -> None:
    """Other weights, another seed, fewer steps or damage: a ValueError, and no row is lost."""
    one, other = engines
    [row] = one.admit([REQUEST])
    one.step()
    state = one.snapshot(row)
    one.release(row)
    header, _, raw = state.partition(b"\n")
    foreign = json.dumps(json.loads(header) | {"sha256": "0" * 64}).encode() + b"\n" + raw
    for request, bad in (
        (REQUEST, foreign), (REQUEST, state[:-1]), (REQUEST, b"junk"), (REQUEST, b"[]\n"), (REQUEST, b"{}\n" + raw),
        (replace(REQUEST, seed=12), state), (SHORTER, state),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            other.restore(request, bad)
    assert len(other.admit([REQUEST, REQUEST])) == 2
    for row in (0, 1):
        other.release(row)


def test_an_edit_resumes_elsewhere_but_only_with_its_own_image(engines: tuple[ServingEngine, ServingEngine]) -> None:
    """The snapshot holds the image's tokens, but not which of them were known: another mask or source image under the
    same seed would resume as a mixture."""
    one, other = engines
    side, tokens = one.image_size[0], one.checkpoint.config.tokens
    known = KnownPixels(bytes(range(256)) * (side * side * 3 // 256), bytes(i % 3 > 0 for i in range(tokens)))
    edit = replace(REQUEST, known=known)
    [row] = one.admit([edit])
    one.step()
    one.step()
    state = one.snapshot(row)
    expected = _finish(one, row)
    assert _finish(other, other.restore(edit, state)) == expected
    for wrong in (None, replace(known, kept=10), replace(known, pixels=bytes(side * side * 3))):
        with pytest.raises(ValueError, match="another image"):
            other.restore(replace(edit, known=wrong), state)
    variation = replace(REQUEST, known=replace(known, kept=30))
    [row] = one.admit([variation])
    one.step()
    state = one.snapshot(row)
    assert _finish(one, row) == _finish(other, other.restore(variation, state))


def test_a_model_without_alpha_refuses_a_transparent_background(tmp_path: Path) -> None:
    """After a reload to such a model the request ran to its end, and failed in every attempt."""
    config = PRESETS["tiny"]
    save_checkpoint(tmp_path / "opaque", Fluid(config), new_tokenizer(config), {"name": "opaque"})
    engine = load_engine(str(tmp_path / "opaque"), max_rows=1, device="cpu", threads=1)
    with pytest.raises(EngineError, match="no alpha"):
        engine.admit([replace(REQUEST, transparent=True)])


def test_the_breadth_of_a_checkpoint_is_part_of_its_vocabulary(
    engines: tuple[ServingEngine, ServingEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Things that are drawn alone, in two styles or more, are no words to warn of."""
    about = engines[0].checkpoint.about
    monkeypatch.setitem(about, "breadth", [about["vocabulary"][0], "harpsichord"])
    assert engines[0].info()["vocabulary"] == [*about["vocabulary"], "harpsichord"]
