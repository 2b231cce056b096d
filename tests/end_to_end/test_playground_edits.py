"""The playground's editor in a real browser, on the fake engine, which is slow enough to watch."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from server.images.codec import read_metadata
from server.worker.engine.fake import FAKE_ENGINE
from tests.end_to_end.conftest import serving
from tests.end_to_end.test_playground import CHROMIUM, FLAGS, playwright, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
SLOW_MS = 300  # a step; the lower half of the fake's images has 8 tokens, so an edit takes up to 2.4 s


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("fake"), FLUID_ENGINE=FAKE_ENGINE, FLUID_FAKE_STEP_MS=str(SLOW_MS)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, service_url: str) -> Iterator[object]:  # type: ignore[no-untyped-def]
    """Open the editor on an image whose lower half is painted, with settings of its own."""
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(service_url)
    page.click("#options summary")
    page.fill("#num_inference_steps", "2")
    page.fill("#prompt", "a cat")
    page.click("#draw")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Generated in')")
    page.click("#pictures figcaption button:has-text('edit a part')")
    page.fill("#editPrompt", "a dog")
    page.click("#lower")
    yield page
    assert page.problems == []
    page.close()


def test_an_edit_uses_every_option(page) -> None:  # type: ignore[no-untyped-def]
    """The form used to omit quality, steps, guidance, file format and number of images, so edits ignored them."""
    page.fill("#n", "2")
    page.fill("#seed", "41")
    page.fill("#num_inference_steps", "3")
    page.fill("#diffusion_steps", "5")
    page.fill("#guidance_scale", "2.5")
    page.fill("#temperature", "0.9")
    page.select_option("#guidance_schedule", "constant")
    page.select_option("#order", "halton")
    page.select_option("#output_format", "webp")
    page.click("#edit")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Done: only')")
    links = page.eval_on_selector_all("#pictures figcaption a", "all => all.map((a) => a.href)")
    recipes = [read_metadata(base64.b64decode(link.split("base64,")[1])) or {} for link in links]
    assert [recipe["seed"] for recipe in recipes] == [41, 42]
    assert all(link.startswith("data:image/webp") for link in links)
    for name, value in {
        "prompt": "a dog", "num_inference_steps": 3, "diffusion_steps": 5, "guidance_scale": 2.5, "temperature": 0.9,
        "guidance_schedule": "constant", "order": "halton",
    }.items():  # fmt: skip
        assert recipes[0][name] == value


def test_a_restored_edit_does_not_promise_the_same_image(page) -> None:  # type: ignore[no-untyped-def]
    """The page used to promise the same image, although Generate does not know the source image of the edit."""
    page.click("#edit")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Done: only')")
    page.click("#recent button")
    assert page.input_value("#prompt") == "a dog" and page.input_value("#num_inference_steps") == "2"
    assert "whole new image" in page.inner_text("#status")
    page.click("#recent button >> nth=1")
    assert "the same image again" in page.inner_text("#status")


def test_edits_run_one_at_a_time_and_can_be_canceled(page) -> None:  # type: ignore[no-untyped-def]
    """A stroke during an edit used to enable its button again, and there was no Cancel."""
    page.fill("#num_inference_steps", "8")
    page.click("#edit")
    page.wait_for_selector("#editCancel:visible")
    page.click("#clear")
    page.click("#lower")
    assert page.is_disabled("#edit") and page.is_disabled("#draw")
    page.press("#prompt", "Enter")  # submits the form although its button is disabled
    assert page.inner_text("#status") == "Generating the painted part…" and page.is_visible("#cancel")
    page.click("#editCancel")
    wait_until(page, "document.getElementById('status').textContent === 'Canceled.'")
    assert page.is_enabled("#edit") and page.is_enabled("#draw")
    assert not page.is_visible("#cancel") and not page.is_visible("#editCancel")


def test_another_link_in_the_same_tab_is_loaded(page) -> None:  # type: ignore[no-untyped-def]
    """The browser does not reload the page for such a link, so it had no effect; earlier settings must not remain."""
    page.evaluate("location.hash = 'prompt=a+bird&seed=5'")
    wait_until(page, "document.getElementById('prompt').value === 'a bird'")
    assert (page.input_value("#seed"), page.input_value("#num_inference_steps")) == ("5", "")
    assert "Settings of the link" in page.inner_text("#status")


def test_paint_is_counted_once_per_stroke(page) -> None:  # type: ignore[no-untyped-def]
    """Counting at every move used to take 150 ms on a large image, so the line lagged behind the pointer."""
    page.click("#clear")
    page.evaluate("""() => { window.counts = 0; const read = CanvasRenderingContext2D.prototype.getImageData;
        CanvasRenderingContext2D.prototype.getImageData = function (...all) { counts++; return read.apply(this, all); };
    }""")
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.5, steps=20)
    page.mouse.up()
    assert page.evaluate("counts") == 1 and "% painted" in page.inner_text("#painted")


def test_the_oldest_image_is_dropped_when_storage_is_full(page) -> None:  # type: ignore[no-untyped-def]
    """A browser stores 5 MB per site; when they were full, the newest image used to be lost."""
    page.evaluate("""() => {
        const old = JSON.parse(localStorage.getItem('fluid-recent'))[0], url = old.url + ' '.repeat(1 << 17);
        localStorage.setItem('fluid-recent', JSON.stringify(Array.from({ length: 4 }, () => ({ ...old, url }))));
        for (let size = 1 << 23, filler = ''; size >= 1; size /= 2) {
            try { localStorage.setItem('filler', filler + ' '.repeat(size)); filler += ' '.repeat(size); } catch {}
        }
    }""")
    page.click("#edit")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Done: only')")
    kept = page.evaluate("JSON.parse(localStorage.getItem('fluid-recent')).map((shot) => shot.settings.prompt)")
    assert kept == ["a dog", "a cat", "a cat", "a cat"]
