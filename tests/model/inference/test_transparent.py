"""Alpha from the engine to the file: a tiny checkpoint with a tokenizer of four channels, random weights."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image

from model.checkpoint import save_checkpoint
from model.inference.load import load_engine
from model.inference.serving import ServingEngine
from model.networks.factory import build_tokenizer
from model.networks.tokenizer import off_white, on_white, to_pixels, to_uint8, with_firm_alpha
from model.presets import PRESETS
from server.images.compositing import KnownPixels
from server.sampling import Sampling
from server.settings import Settings
from server.worker.engine.protocol import RowRequest
from tests.model.conftest import random_model
from tests.server.conftest import new_service, valkey  # noqa: F401
from tests.server.harness import Service

REQUEST = RowRequest("a cat", 3, Sampling.from_mapping({
    "num_inference_steps": 4, "diffusion_steps": 4, "guidance_scale": 2.0, "guidance_schedule": "linear",
    "temperature": 1.0,
}))  # fmt: skip
SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = PRESETS["tiny"]
    config = dataclasses.replace(tiny, tokenizer=dataclasses.replace(tiny.tokenizer, image_channels=4))
    torch.manual_seed(0)
    model, tokenizer = random_model(config), build_tokenizer(config.tokenizer)  # type: ignore[arg-type]
    saved = tmp_path_factory.mktemp("rgba") / "tiny-rgba"
    save_checkpoint(saved, model, tokenizer, {"name": "tiny-rgba"}, torch.float32)
    return saved


def image(engine: ServingEngine, request: RowRequest) -> bytes:
    [row] = engine.admit([request])
    while row not in engine.step():
        pass
    found = engine.image(row)
    engine.release(row)
    return found


def test_the_engine_gives_alpha_where_it_is_asked_for(folder: Path) -> None:
    engine = load_engine(str(folder), max_rows=2, device="cpu", threads=1)
    assert engine.info()["transparent"]
    clear, opaque = (image(engine, dataclasses.replace(REQUEST, transparent=each)) for each in (True, False))
    assert (len(clear), len(opaque)) == (SIDE * SIDE * 4, SIDE * SIDE * 3)
    page = Image.new("RGBA", (SIDE, SIDE), "white")
    page.alpha_composite(Image.frombytes("RGBA", (SIDE, SIDE), clear))
    assert set(clear[3::4]) != {255}
    shown = page.convert("RGB").tobytes()
    off = [abs(shown[3 * i + c] - opaque[3 * i + c]) for i in range(SIDE * SIDE) for c in range(3)
           if clear[4 * i + 3] and 0 < clear[4 * i + c] < 255]  # fmt: skip
    assert len(off) > 100 and max(off) <= 2, (
        "on white it is the opaque image, except where nothing shows or colours were clipped"
    )
    kept = bytes([1] * 8 + [0] * 8)
    see_through = KnownPixels(bytes([9, 200, 30, 0]) * SIDE * SIDE, kept)
    seen = KnownPixels(bytes([9, 200, 30, 255]) * SIDE * SIDE, kept)
    edits = {image(engine, dataclasses.replace(REQUEST, known=each, transparent=True)) for each in (see_through, seen)}
    assert len(edits) == 2, "the source's alpha reaches the tokens"


def test_colours_are_those_of_the_thing_not_of_the_page() -> None:
    """A half transparent red used to become pink at the edges of every thing."""
    red = torch.tensor([1.0, -1.0, -1.0, 0.0]).view(1, 4, 1, 1)  # alpha one half
    assert on_white(red).flatten().tolist() == [1.0, 0.0, 0.0, 0.0]
    torch.testing.assert_close(off_white(on_white(red)), red)
    clear = torch.tensor([0.9, 1.0, 1.0, -1.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(off_white(clear), clear)


def test_nearly_opaque_is_opaque_and_nearly_empty_is_empty() -> None:
    """A quarter of an opaque picture had an alpha of 243 to 254, and a page shone through; empty ground was not empty.
    Alpha still rises with what the decoder says, and colours stay as they are."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 4)
    firm = with_firm_alpha(to_pixels(levels))
    alpha = to_uint8(firm)[0, 0, :, 3].long()
    assert (alpha[:17] == 0).all() and (alpha[239:] == 255).all() and (alpha.diff() >= 0).all()
    assert (alpha[17:239] - torch.arange(17, 239)).abs().max() <= 16 and alpha[18] > 0 and alpha[237] < 255
    torch.testing.assert_close(firm[:, :3], to_pixels(levels)[:, :3])
    assert with_firm_alpha(torch.tensor([0.0, 0.0, 0.0, -1.4]).view(1, 4, 1, 1))[0, 3] == -1


@pytest.mark.slow
def test_a_service_sends_transparent_files(folder: Path, new_service: Callable[..., Service]) -> None:  # noqa: F811
    service = new_service(engine=Settings().engine, checkpoint=str(folder), device="cpu", threads=1, lease_s=10.0)
    url = f"{service.settings.base_url}/v1/images"
    body = {"prompt": "a cat", "seed": 3, "quality": "low", "background": "transparent"}

    def shown(b64: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(b64)))

    for changes, mode in (({}, "RGBA"), ({"output_format": "webp"}, "RGBA"), ({"background": "opaque"}, "RGB")):
        answer = httpx.post(f"{url}/generations", json=body | changes).json()
        assert (shown(answer["data"][0]["b64_json"]).mode, answer["warnings"]) == (mode, [])
        assert answer["background"] == (body | changes)["background"]
    refused = httpx.post(f"{url}/generations", json=body | {"output_format": "jpeg"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "output_format")
    stream = httpx.post(f"{url}/generations", json=body | {"stream": True, "partial_images": 1}).text
    previews = [part.partition('"')[0] for part in stream.split('"b64_json":"')[1:]]
    assert [shown(each).mode for each in previews] == ["RGBA", "RGBA"]
    source, mask = Image.new("RGBA", (SIDE, SIDE), (9, 200, 30, 77)), Image.new("RGBA", (SIDE, SIDE), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 8, SIDE))
    files = {}
    for name, each in (("image", source), ("mask", mask)):
        buffer = io.BytesIO()
        each.save(buffer, "PNG")
        files[name] = buffer.getvalue()
    edited = shown(httpx.post(f"{url}/edits", data=body, files=files).json()["data"][0]["b64_json"])
    assert edited.mode == "RGBA" and edited.getpixel((12, 3)) == (9, 200, 30, 77)
    varied = httpx.post(f"{url}/variations", data=body, files={"image": files["image"]}).json()["data"][0]["b64_json"]
    assert shown(varied).mode == "RGBA"
