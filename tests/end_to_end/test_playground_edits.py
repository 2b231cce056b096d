"""The playground's editor in a real browser, and what it keeps; drawn by the fake engine, slowly enough to watch."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from server.images.codec import read_metadata
from tests.end_to_end.conftest import serving
from tests.end_to_end.test_playground import CHROMIUM, FLAGS, playwright, wait_until

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
SLOW_MS = 300  # a step: the lower half of the fake's pictures has 8 tokens, so that an edit takes up to 2.4 s


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("fake"), FLUID_ENGINE="fake", FLUID_FAKE_STEP_MS=str(SLOW_MS)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, service_url: str) -> Iterator[object]:  # type: ignore[no-untyped-def]
    """The editor open on a picture whose lower half is painted, with settings of its own."""
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(service_url)
    page.click("#options summary")
    page.fill("#num_inference_steps", "2")
    page.fill("#prompt", "a cat")
    page.click("#draw")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Drawn in')")
    page.click("#pictures figcaption button:has-text('change a part')")
    page.fill("#editPrompt", "a dog")
    page.click("#lower")
    yield page
    assert page.problems == []
    page.close()


def test_an_edit_is_drawn_with_all_that_the_options_say(page) -> None:  # type: ignore[no-untyped-def]
    """Quality, steps, guidance, file and number of pictures had no effect on edits: the form left them out."""
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
    wait_until(page, "document.getElementById('status').textContent.startsWith('Drawn: only')")
    links = page.eval_on_selector_all("#pictures figcaption a", "all => all.map((a) => a.href)")
    recipes = [read_metadata(base64.b64decode(link.split("base64,")[1])) or {} for link in links]
    assert [recipe["seed"] for recipe in recipes] == [41, 42]
    assert all(link.startswith("data:image/webp") for link in links)
    for name, value in {
        "prompt": "a dog", "num_inference_steps": 3, "diffusion_steps": 5, "guidance_scale": 2.5, "temperature": 0.9,
        "guidance_schedule": "constant", "order": "halton",
    }.items():  # fmt: skip
        assert recipes[0][name] == value


def test_a_recalled_edit_does_not_promise_the_same_picture(page) -> None:  # type: ignore[no-untyped-def]
    """Draw knows nothing of the picture that an edit began with, and yet the page said that it makes it again."""
    page.click("#edit")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Drawn: only')")
    page.click("#recent button")
    assert page.input_value("#prompt") == "a dog" and page.input_value("#num_inference_steps") == "2"
    assert "whole new picture" in page.inner_text("#status")
    page.click("#recent button >> nth=1")
    assert "the same picture again" in page.inner_text("#status")


def test_an_edit_is_drawn_once_at_a_time_and_can_be_canceled(page) -> None:  # type: ignore[no-untyped-def]
    """A stroke while it was drawn enabled "Draw it" again, and Cancel was not there."""
    page.fill("#num_inference_steps", "8")
    page.click("#edit")
    page.wait_for_selector("#editCancel:visible")
    page.click("#clear")
    page.click("#lower")
    assert page.is_disabled("#edit") and page.is_disabled("#draw")
    page.press("#prompt", "Enter")  # asks the form, whatever its button says
    assert page.inner_text("#status") == "Drawing the painted part…" and page.is_visible("#cancel")
    page.click("#editCancel")
    wait_until(page, "document.getElementById('status').textContent === 'Canceled.'")
    assert page.is_enabled("#edit") and page.is_enabled("#draw")
    assert not page.is_visible("#cancel") and not page.is_visible("#editCancel")


def test_another_link_in_the_same_tab_is_taken(page) -> None:  # type: ignore[no-untyped-def]
    """The browser loads nothing anew for it, so nothing happened; and settings from before would change its picture."""
    page.evaluate("location.hash = 'prompt=a+bird&seed=5'")
    wait_until(page, "document.getElementById('prompt').value === 'a bird'")
    assert (page.input_value("#seed"), page.input_value("#num_inference_steps")) == ("5", "")
    assert "Settings of the link" in page.inner_text("#status")


def test_paint_is_counted_once_per_stroke(page) -> None:  # type: ignore[no-untyped-def]
    """Counting at every move took 150 ms each on a large picture, so that the line lagged behind the pointer."""
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
    assert page.evaluate("counts") == 1 and "is painted" in page.inner_text("#painted")


def test_without_room_the_oldest_picture_goes(page) -> None:  # type: ignore[no-untyped-def]
    """A browser keeps 5 MB for a site; when they were full it was the newest picture that was lost."""
    page.evaluate("""() => {
        const old = JSON.parse(localStorage.getItem('fluid-recent'))[0], url = old.url + ' '.repeat(1 << 17);
        localStorage.setItem('fluid-recent', JSON.stringify(Array.from({ length: 4 }, () => ({ ...old, url }))));
        for (let size = 1 << 23, filler = ''; size >= 1; size /= 2) {
            try { localStorage.setItem('filler', filler + ' '.repeat(size)); filler += ' '.repeat(size); } catch {}
        }
    }""")
    page.click("#edit")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Drawn: only')")
    kept = page.evaluate("JSON.parse(localStorage.getItem('fluid-recent')).map((shot) => shot.settings.prompt)")
    assert kept == ["a dog", "a cat", "a cat", "a cat"]
