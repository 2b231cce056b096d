"""The shipped checkpoint and one of other sizes in one `fluid serve`: through the API, and in the playground."""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from model.checkpoint import save_checkpoint
from model.networks.autoregressive_model import Fluid
from model.networks.factory import new_tokenizer
from model.presets import PRESETS
from server.client import FluidClient
from server.errors import ServiceError
from tests.end_to_end.browser import needs_browser, open_page, wait_for_status, wait_until
from tests.end_to_end.conftest import serving
from tests.server.harness import until

pytestmark = pytest.mark.slow
FIRST, SECOND = "atlas-128", "squares-64"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    other = tmp_path_factory.mktemp("checkpoints") / SECOND
    config = PRESETS["emoji-64"]
    about = {"name": SECOND, "licence": "Apache-2.0", "vocabulary": ["red square"], "styles": ["outline"]}
    save_checkpoint(other, Fluid(config), new_tokenizer(config), about)  # which generates noise
    flags = ["--checkpoint", FIRST, "--checkpoint", str(other)]
    with serving(tmp_path_factory.mktemp("models"), *flags) as url, FluidClient(url) as client:
        until(lambda: client.health()["models"] == {FIRST: True, SECOND: True}, seconds=120, what="both models")
        yield url


def size(file: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(file)).size


def test_each_model_has_its_sizes_presets_and_workers(url: str) -> None:
    """The second one's worker is killed: the first goes on, and a job waits until the worker has been restarted."""
    with FluidClient(url, max_retries=0) as client:
        assert [(model["id"], model["default"]) for model in client.models()] == [(FIRST, True), (SECOND, False)]
        assert size(client.generate("a red apple", quality="low")[0].data) == (128, 128)
        [image] = client.generate("a red apple", quality="low", model=SECOND)
        assert size(image.data) == (64, 64)
        with pytest.raises(ServiceError, match=rf"'size' 128x128 is not supported by {SECOND}; use 64x64"):
            client.generate("a red apple", model=SECOND, size="128x128")
        [pid] = re.findall(
            rf'fluid_worker_up{{model="{SECOND}",worker="\S+-(\d+)-\w+"', httpx.get(f"{url}/metrics").text
        )
        os.kill(int(pid), signal.SIGKILL)
        job = client.submit("a red apple", model=SECOND)["id"]
        assert size(client.generate("a red apple", quality="low")[0].data) == (128, 128)
        assert client.wait(job, timeout_s=120)["status"] == "succeeded"
        assert size(client.image(job)) == (64, 64)


@needs_browser
def test_the_playground_follows_the_chosen_model(browser: Any, url: str) -> None:
    """Limits, styles and size are the model's, and a link restores the choice."""
    page = open_page(browser, url)
    wait_until(page, "document.querySelectorAll('#examples button').length > 0")
    assert page.input_value("#choice") == FIRST
    before = page.inner_text("#styles")
    page.select_option("#choice", SECOND)
    assert SECOND in page.inner_text("#model") and page.inner_text("#styles") != before
    assert page.eval_on_selector_all("#size option", "all => all.map((each) => each.textContent)") == ["auto", "64x64"]
    assert "Apache-2.0" in page.inner_text("#choiceHelp")
    assert f'"model":"{SECOND}"' in page.text_content("#snippet")
    page.click("#generate")
    wait_for_status(page, "Generated in")
    assert page.eval_on_selector("#images img", "async i => { await i.decode(); return i.naturalWidth }") == 64
    link, problems = page.url, page.problems
    page.context.close()
    page = open_page(browser, link)
    wait_until(page, f"document.getElementById('choice').value === '{SECOND}'")
    assert SECOND in page.inner_text("#model")
    assert problems == [each for each in page.problems if not each.startswith(url)] == []
    page.context.close()
