"""The playground in a real browser: generate, watch previews, reuse a seed, edit a part."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.gateway.api_keys import hash_key
from server.worker.engine.fake import FAKE_ENGINE
from tests.end_to_end.conftest import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run", "--disable-quic"]  # fmt: skip

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def page(live: str) -> Iterator[object]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.problems = []
        page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: page.problems.append(request.url)
                if not request.url.startswith((live, "data:")) else None)  # fmt: skip
        page.goto(live)
        yield page
        browser.close()


def wait_until(page, condition: str, seconds: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    """Poll from outside: Playwright's own waiting evaluates strings in the page, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"{condition} did not come true within {seconds:g} s"
        page.wait_for_timeout(30)


def test_a_prompt_becomes_an_image(page) -> None:  # type: ignore[no-untyped-def]
    """Nothing is fetched from another host, and the console stays free of errors."""
    page.fill("#prompt", "a green apple, flat style")
    page.click("#draw")
    page.wait_for_selector("#pictures figcaption", timeout=60_000)
    assert page.eval_on_selector("#pictures img", "async i => { await i.decode(); return i.naturalWidth }") == 128
    assert "Generated in" in page.inner_text("#status")
    assert page.get_attribute("#pictures img", "alt") == "a green apple, flat style"
    assert page.problems == []


@pytest.mark.slow
def test_previews_are_shown_while_an_image_is_decoded(page) -> None:  # type: ignore[no-untyped-def]
    """Every preview differs from the one before, and the last image is the result."""
    page.evaluate("""() => { window.shown = []; new MutationObserver(() => {
        const image = document.querySelector('#pictures img'); if (image) shown.push(image.src);
    }).observe(document.getElementById('pictures'), { childList: true, subtree: true }); }""")
    page.fill("#prompt", "a green apple, flat style")
    page.click("#options summary")
    page.fill("#seed", "11")
    page.fill("#num_inference_steps", "16")
    page.click("#draw")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Generated in')")
    shown = page.evaluate("[...new Set(shown)]")
    assert len(shown) == 4
    assert shown[-1] == page.get_attribute("#pictures img", "src")
    page.fill("#num_inference_steps", "")
    page.fill("#seed", "")
    page.click("#options summary")
    page.evaluate("localStorage.clear()")


@pytest.mark.slow
def test_a_link_generates_the_same_image(page, live: str) -> None:  # type: ignore[no-untyped-def]
    """Prompt, seed and settings are in the URL."""
    page.wait_for_selector("#pictures figcaption", timeout=60_000)
    first, link = page.get_attribute("#pictures img", "src"), page.url
    assert "seed=11" in link and "num_inference_steps=16" in link
    page.goto("about:blank")
    page.problems.clear()
    page.goto(link)
    assert page.input_value("#prompt") == "a green apple, flat style"
    page.click("#draw")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Generated in')")
    assert page.get_attribute("#pictures img", "src") == first
    page.goto("about:blank")
    page.goto(live)
    page.evaluate("localStorage.clear()")
    page.fill("#prompt", "a green apple, flat style")
    page.click("#draw")
    page.wait_for_selector("#recent img", timeout=60_000)


@pytest.mark.slow
def test_generation_can_be_canceled(page) -> None:  # type: ignore[no-untyped-def]
    """Escape cancels the request, and the next one succeeds."""
    page.click("#options summary")
    page.fill("#num_inference_steps", "64")
    page.fill("#diffusion_steps", "250")
    page.click("#draw")
    page.wait_for_selector("#cancel:visible")
    page.keyboard.press("Escape")
    page.wait_for_selector("#status.bad", timeout=30_000)
    assert page.inner_text("#status") == "Canceled."
    for field in ("#num_inference_steps", "#diffusion_steps"):
        page.fill(field, "")
    page.click("#options summary")
    page.click("#draw")
    page.wait_for_selector("#pictures figcaption", timeout=60_000)


@pytest.mark.slow
def test_seed_and_settings_can_be_restored(page) -> None:  # type: ignore[no-untyped-def]
    """The same seed gives the same bytes, and a click on a recent image restores its prompt."""
    page.wait_for_selector("#pictures figcaption", timeout=60_000)
    first = page.get_attribute("#pictures img", "src")
    recent = page.evaluate("document.querySelectorAll('#recent img').length")
    page.click("text=use this seed")
    page.click("#draw")
    wait_until(page, f"document.querySelectorAll('#recent img').length > {recent}")
    assert page.get_attribute("#pictures img", "src") == first
    page.fill("#prompt", "something else")
    page.click("#recent button")
    assert page.input_value("#prompt") == "a green apple, flat style"


@pytest.mark.slow
def test_words_and_styles_fill_in_the_prompt(page) -> None:  # type: ignore[no-untyped-def]
    page.fill("#filter", "cact")
    page.click("#words button:has-text('cactus')")
    page.click("#styles button:has-text('noto')")
    assert page.input_value("#prompt") == "a cactus, noto style"


@pytest.mark.slow
def test_an_error_is_shown_as_text(page) -> None:  # type: ignore[no-untyped-def]
    page.fill("#prompt", "a cactus")
    page.click("#options summary")
    page.eval_on_selector("#num_inference_steps", "e => { e.max = 9999; e.value = 9000 }")
    page.click("#draw")
    page.wait_for_selector("#status.bad", timeout=30_000)
    assert "num_inference_steps" in page.inner_text("#status")


@pytest.mark.slow
def test_the_page_fits_a_phone(page) -> None:  # type: ignore[no-untyped-def]
    page.set_viewport_size({"width": 360, "height": 740})
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0


@pytest.mark.slow
def test_the_page_asks_for_an_api_key_and_does_not_store_it(page, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The next user of the browser could read a key that is stored or in the URL."""
    key = "fl-secret"
    with serving(tmp_path, FLUID_API_KEYS=f"alice {hash_key(key)}", FLUID_ENGINE=FAKE_ENGINE) as url:
        page = page.context.browser.new_page()
        page.goto(url)
        wait_until(page, "document.querySelector('#key').getAttribute('aria-invalid') === 'true'")
        assert "API key" in page.inner_text("#status") and page.is_visible("#key")
        page.fill("#key", key)
        page.press("#key", "Tab")
        wait_until(page, "document.querySelector('#model').textContent.startsWith('fake')")
        page.fill("#prompt", "a cat")
        page.press("#prompt", "Enter")
        page.wait_for_selector("#pictures img:not(.preview)")
        wait_until(page, "document.querySelector('#status').textContent.startsWith('Generated')")
        kept = page.evaluate("JSON.stringify(localStorage) + location.href + document.cookie")
        assert key not in kept and "cat" in kept
        page.close()


@pytest.mark.slow
def test_a_painted_part_is_regenerated(page, live: str) -> None:  # type: ignore[no-untyped-def]
    """Painted by pointer on an image that was just generated; every pixel outside the paint stays."""
    page.goto("about:blank")  # resets the options that other tests have set
    page.goto(live)
    page.problems.clear()
    page.fill("#prompt", "a red apple, 3d style")
    page.click("#draw")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Generated in')")
    before = page.evaluate(PIXELS, "#pictures img")
    page.click("#pictures figcaption button:has-text('edit a part')")
    assert page.is_disabled("#edit") and page.inner_text("#painted") == "Nothing painted yet."
    page.fill("#editPrompt", "a green apple, flat style")
    page.fill("#feather", "0")
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.8)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.8, steps=4)
    page.mouse.up()
    share = int(page.inner_text("#painted").split(" %")[0])
    assert 3 <= share <= 25
    page.click("#edit")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Done: only')")
    after = page.evaluate(PIXELS, "#pictures figure:last-child img")
    size = int(len(after) ** 0.5)
    changed = [(i % size, i // size) for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    assert len(changed) > 20
    assert all(y > size * 0.5 and x > size * 0.4 for x, y in changed), "something outside the paint changed"
    assert page.problems == []


@pytest.mark.slow
def test_the_mask_can_be_painted_by_keyboard_or_by_button(page) -> None:  # type: ignore[no-untyped-def]
    page.focus("#canvas")
    page.click("#clear")
    page.focus("#canvas")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#painted").startswith("Brush at ")
    page.keyboard.press("Space")
    one = int(page.inner_text("#painted").split(" %")[0])
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Space")
    assert int(page.inner_text("#painted").split(" %")[0]) > one
    page.check("#erase")
    page.focus("#canvas")
    page.keyboard.press("Space")
    assert int(page.inner_text("#painted").split(" %")[0]) == one
    page.uncheck("#erase")
    page.click("#lower")
    assert int(page.inner_text("#painted").split(" %")[0]) >= 50
    page.click("#close")
    assert not page.is_visible("#editor")


PIXELS = """async (selector) => {
    const image = document.querySelector(selector); await image.decode();
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0);
    const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    const of = (i) => data[4 * i] << 16 | data[4 * i + 1] << 8 | data[4 * i + 2];
    return Array.from({ length: data.length / 4 }, (_, i) => of(i));
}"""
