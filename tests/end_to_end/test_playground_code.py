"""What the playground derives: the request as code, which is run here, and the order of tokens."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.images.codec import read_metadata
from server.worker.engine.fake import FAKE_ENGINE
from tests.end_to_end.browser import needs_browser, open_page, wait_for_status, wait_until
from tests.end_to_end.conftest import serving
from tests.server.harness import job_input

pytestmark = needs_browser
PROMPT = 'a cat\'s "hat" & $HOME, größer'
LANGUAGES = {"curl": ["bash"], "python": [sys.executable], "js": ["node", "--input-type=module"]}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("fake"), FLUID_ENGINE=FAKE_ENGINE) as url:
        yield url


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    page = open_page(browser, url)
    wait_until(page, "document.querySelectorAll('#examples button').length > 0")
    page.click("#options summary")
    page.click("#code summary")
    yield page
    assert page.problems == []
    page.context.close()


def run(code: str, language: str, folder: Path) -> None:
    command = LANGUAGES[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on this machine")
    done = subprocess.run(command, input=code, text=True, capture_output=True, timeout=120, cwd=folder)
    assert done.returncode == 0, f"{code}\n{done.stderr}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_code_generates_the_image_of_the_form(page: Any, tmp_path: Path, language: str) -> None:
    """It is copied and run as it is: quotes, spaces and umlauts of the prompt arrive."""
    page.fill("#prompt", PROMPT)
    page.fill("#seed", "11")
    page.fill("#guidance_scale", "2.5")
    page.fill("#negative_prompt", "a dog")
    page.select_option("#order", "halton")
    page.click(f"#tab-{language}")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copyCode")
    wait_until(page, "document.querySelector('#copyCode').textContent === 'Copied'")
    run(page.evaluate("navigator.clipboard.readText()"), language, tmp_path)
    page.click("#generate")
    wait_for_status(page, "Seed 11.")
    shown = read_metadata(base64.b64decode(page.get_attribute("#images img", "src").split("base64,")[1])) or {}
    [made] = tmp_path.glob("image*.png")
    recipe = read_metadata(made.read_bytes()) or {}
    assert recipe["prompt"] == PROMPT and recipe["order"] == "halton"
    assert recipe["negative_prompt"] == "a dog"
    assert recipe == shown


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_code_of_an_edit_runs(page: Any, tmp_path: Path, language: str) -> None:
    """While the editor is open, the code is that of an edit, with the two files beside it."""
    page.fill("#prompt", PROMPT)
    page.click("#generate")
    wait_for_status(page, "Generated in")
    page.click("#editPart")
    page.wait_for_selector("#canvas:visible")
    page.click("#lower")
    page.fill("#seed", "12")
    page.click(f"#tab-{language}")
    for name, data in page.evaluate("""async () => { const files = await editFiles(), read = {};
        for (const [name, file] of Object.entries(files)) read[name] = (await readAsUrl(file)).split(',')[1];
        return read; }""").items():  # fmt: skip
        (tmp_path / f"{name}.png").write_bytes(base64.b64decode(data))
    run(page.inner_text("#snippet"), language, tmp_path)
    made = next(path for path in tmp_path.glob("image*.png") if path.name != "image.png" or language == "curl")
    recipe = read_metadata(made.read_bytes()) or {}
    assert recipe["seed"] == 12 and recipe["prompt"] == PROMPT and recipe["edit"]["feather"] == 2


def test_the_code_follows_every_change(page: Any) -> None:
    """By typing, by a chip, by a link, by the history; what is the default anyway is left out."""
    shown = "document.querySelector('#snippet').textContent"
    assert "quality" not in page.evaluate(shown) and '"n"' not in page.evaluate(shown)
    page.select_option("#quality", "high")
    page.fill("#n", "3")
    assert '"quality":"high"' in page.evaluate(shown) and '"n":3' in page.evaluate(shown)
    page.click("#styles button")
    assert "plain style" in page.evaluate(shown)
    page.evaluate("location.hash = 'prompt=a+bird&seed=5'")
    wait_until(page, f"{shown}.includes('a bird')")
    assert '"seed":5' in page.evaluate(shown) and "high" not in page.evaluate(shown)
    page.fill("#key", "fl-secret")
    assert "$FLUID_API_KEY" in page.evaluate(shown) and "fl-secret" not in page.evaluate(shown)
    page.focus("#tab-curl")
    page.keyboard.press("ArrowRight")
    assert "from openai import OpenAI" in page.evaluate(shown)
    assert page.evaluate("document.activeElement.id") == "tab-python"


def test_a_background_is_offered_by_models_with_alpha(page: Any) -> None:
    shown = "document.querySelector('#snippet').textContent"
    assert page.evaluate("$('ground').hidden")
    page.evaluate("offer({ ...model, id: 'other', transparent: true })")
    page.select_option("#background", "transparent")
    assert '"background":"transparent"' in page.evaluate(shown)
    page.evaluate("offer({ ...model, id: 'fake', transparent: false })")
    assert page.evaluate("$('ground').hidden && request().background === undefined")


@pytest.mark.parametrize("kind", ["random", "halton", "gtr"])
@pytest.mark.parametrize("grid", [4, 8, 16])
def test_the_order_of_tokens_is_the_engines(page: Any, kind: str, grid: int) -> None:
    """The page derives it from the seed, as the engine does; a large seed needs both words of the key."""
    torch = pytest.importorskip("torch")
    from model.inference.orders import make_order, tokens_per_step

    for seed in (0, 7, 2**32 - 1, 2**53 - 1):
        expected = make_order(kind, torch.tensor([seed]), grid)[0].tolist()
        assert page.evaluate(f"tokenOrder('{kind}', {seed}, {grid})") == expected
    for steps in (1, 5, grid * grid):
        at = page.evaluate(f"stepOfEach(tokenOrder('{kind}', 7, {grid}), {steps}, [], '{kind}')")
        assert [at.count(step + 1) for step in range(steps)] == tokens_per_step(steps, grid * grid, kind)
        first = [position for position, step in enumerate(at) if step == 1]
        assert set(first) == set(make_order(kind, torch.tensor([7]), grid)[0].tolist()[-len(first) :])


def test_previews_are_of_the_steps_that_the_worker_sends(page: Any) -> None:
    """The page covers the tokens that a preview does not hold yet."""
    for previews in (1, 2, 3):
        for steps in (1, 2, 3, 5, 10, 16, 18, 30, 64):
            job = job_input(partial_images=previews, num_inference_steps=steps)
            found = page.evaluate(f"previewSteps({{partial_images: {previews}, num_inference_steps: {steps}}})")
            assert found == list(job.preview_steps), (previews, steps)
