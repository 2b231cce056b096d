"""The playground in a real browser: generate, watch previews, reuse a seed, edit a part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.gateway.api_keys import hash_key
from server.worker.engine.fake import FAKE_ENGINE
from tests.end_to_end.browser import assert_same_image, needs_browser, open_page, overflow, wait_for_status, wait_until
from tests.end_to_end.conftest import serving

pytestmark = needs_browser
DONE = "Generated in"


@pytest.fixture
def page(browser: Any, live: str) -> Iterator[Any]:
    page = open_page(browser, live)
    wait_until(page, "document.querySelectorAll('#examples button').length > 0")
    yield page
    assert page.problems == []
    page.context.close()


def generate(page: Any, prompt: str = "a green apple, flat style", **settings: object) -> str:
    """Generate with these settings; return the image as a data: URL."""
    page.fill("#prompt", prompt)
    set_fields(page, **settings)
    page.click("#generate")
    wait_for_status(page, DONE)
    return str(page.get_attribute("#images img", "src"))


def set_fields(page: Any, **settings: object) -> None:
    if settings and page.get_attribute("#options", "open") is None:
        page.click("#options summary")
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))


def test_the_examples_are_those_that_the_model_publishes(page: Any, live: str) -> None:
    """They show counts, positions and colours, which a thing and a style alone did not."""
    (model,) = httpx.get(f"{live}/v1/models").json()["data"]
    shown = page.eval_on_selector_all("#examples button", "all => all.map((each) => each.textContent)")
    assert shown == model["examples"] and len(shown) > 3


def test_a_prompt_becomes_an_image(page: Any) -> None:
    """Nothing is fetched from another host, and no script or style is refused by the page's policy."""
    generate(page)
    assert page.eval_on_selector("#images img", "async i => { await i.decode(); return i.naturalWidth }") == 128
    assert page.eval_on_selector("#images img", "i => getComputedStyle(i).imageRendering") == "pixelated"
    assert page.get_attribute("#images img", "alt") == "a green apple, flat style"
    assert page.eval_on_selector("#images img", "i => i.clientWidth") > 400, "the image is the page"


@pytest.mark.slow
def test_previews_are_shown_while_an_image_is_decoded(page: Any) -> None:
    """Every preview differs from the one before, and the last image is the result."""
    page.evaluate("""() => { window.shown = []; new MutationObserver(() => {
        const image = document.querySelector('#images img'); if (image) shown.push(image.src);
    }).observe(document.getElementById('images'), { childList: true, subtree: true, attributes: true }); }""")
    last = generate(page, seed=11, num_inference_steps=16)
    shown = page.evaluate("[...new Set(shown)]")
    assert len(shown) == 4
    assert shown[-1] == last


@pytest.mark.slow
def test_a_link_generates_the_same_image(page: Any, browser: Any, live: str) -> None:
    """Prompt, seed and settings are in the URL, and Copy link gives the same one."""
    first = generate(page, seed=11, num_inference_steps=16)
    link = page.url
    assert "seed=11" in link and "num_inference_steps=16" in link
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#link")
    wait_until(page, "document.querySelector('#link span').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == link
    other = open_page(browser, live)
    other.goto("about:blank")
    other.problems.clear()
    other.goto(link)
    assert other.input_value("#prompt") == "a green apple, flat style"
    other.click("#generate")
    wait_for_status(other, DONE)
    assert_same_image(other.get_attribute("#images img", "src"), first)
    other.context.close()


@pytest.mark.slow
def test_generation_can_be_canceled(page: Any) -> None:
    """Escape cancels the request, and the next one succeeds."""
    page.fill("#prompt", "a cat")
    set_fields(page, num_inference_steps=64, diffusion_steps=250)
    page.click("#generate")
    page.wait_for_selector("#cancel:visible")
    page.keyboard.press("Escape")
    wait_for_status(page, "Canceled.")
    assert not page.is_visible("#cancel")
    generate(page, num_inference_steps="", diffusion_steps="")


@pytest.mark.slow
def test_seed_and_settings_can_be_restored(page: Any) -> None:
    """The same seed gives the same image, and a click on an image of the history restores its prompt.

    It once compared bytes, which a continuous-integration machine's rounding changed.
    """
    first = generate(page)
    page.click("#reuse")
    page.click("#generate")
    wait_until(page, "document.querySelectorAll('#recent img').length > 1")
    assert_same_image(page.get_attribute("#images img", "src"), first)
    page.fill("#prompt", "something else")
    page.click("#recent button")
    assert page.input_value("#prompt") == "a green apple, flat style"


@pytest.mark.slow
def test_words_and_styles_fill_in_the_prompt(page: Any) -> None:
    page.click("#vocabulary summary")
    page.fill("#filter", "cact")
    page.click("#words button:has-text('cactus')")
    page.click("#styles button:has-text('noto')")
    assert page.input_value("#prompt") == "a cactus, noto style"


@pytest.mark.slow
def test_a_style_takes_the_place_of_the_one_that_the_prompt_names(page: Any) -> None:
    """Only a style at the end was replaced: the others stayed, and the prompt had two."""
    for before, pressed, after in (
        ("three cats, 3d style on a blue background", "blob", "three cats, blob style on a blue background"),
        ("flat style, a cat", "noto", "noto style, a cat"),
        ("a cat in flat style", "flat", "a cat"),
    ):
        page.fill("#prompt", before)
        page.click(f"#styles button:text-is('{pressed}')")
        assert page.input_value("#prompt") == after
    page.click("#vocabulary summary")
    page.fill("#filter", "accordion")
    page.fill("#prompt", "a cat, 3d style")
    page.click("#words button:has-text('accordion')")
    assert page.input_value("#prompt") == "an accordion", "the model has not seen it in that style"


@pytest.mark.slow
def test_an_error_is_shown_beside_its_field(page: Any) -> None:
    page.click("#options summary")
    page.eval_on_selector("#num_inference_steps", "e => { e.max = 9999; e.value = 9000 }")
    page.click("#options summary")
    page.click("#generate")
    page.wait_for_selector("#status.bad")
    assert "num_inference_steps" in page.inner_text("#status")
    assert page.is_visible("#num_inference_stepsError")


@pytest.mark.slow
def test_the_page_fits_a_narrow_phone(page: Any) -> None:
    page.set_viewport_size({"width": 340, "height": 640})
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert overflow(page) <= 0


@pytest.mark.slow
def test_the_page_asks_for_an_api_key_and_does_not_store_it(browser: Any, tmp_path: Path) -> None:
    """The next user of the browser could read a key that is stored or in the URL."""
    key = "fl-secret"
    with serving(tmp_path, FLUID_API_KEYS=f"alice {hash_key(key)}", FLUID_ENGINE=FAKE_ENGINE) as url:
        page = open_page(browser, url)
        wait_until(page, "document.querySelector('#key').getAttribute('aria-invalid') === 'true'")
        assert "API key" in page.inner_text("#status") and page.is_visible("#key")
        page.fill("#key", key)
        page.press("#key", "Tab")
        wait_until(page, "document.querySelector('#model').textContent.startsWith('fake')")
        page.fill("#prompt", "a cat")
        page.press("#prompt", "Enter")
        wait_for_status(page, DONE)
        kept = page.evaluate("JSON.stringify(localStorage) + location.href + document.cookie + snippet()")
        assert key not in kept and "cat" in kept and "$FLUID_API_KEY" in kept
        assert page.problems == []
        page.context.close()


@pytest.mark.slow
def test_a_painted_part_is_regenerated(page: Any) -> None:
    """Painted by pointer on an image that was just generated; every pixel outside the paint stays."""
    generate(page, "a red apple, 3d style")
    before = page.evaluate(PIXELS, "#images img")
    page.click("#editPart")
    page.wait_for_selector("#canvas:visible")
    assert page.inner_text("#painted") == "Nothing painted yet."
    page.fill("#prompt", "a green apple, flat style")
    set_fields(page, feather=0)
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.8)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.8, steps=4)
    page.mouse.up()
    share = int(page.inner_text("#painted").split(" %")[0])
    assert 3 <= share <= 25
    page.click("#generate")
    wait_for_status(page, "Only the painted part was generated.")
    after = page.evaluate(PIXELS, "#images img")
    size = int(len(after) ** 0.5)
    changed = [(i % size, i // size) for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    assert len(changed) > 20
    assert all(y > size * 0.5 and x > size * 0.4 for x, y in changed), "something outside the paint changed"
    page.click("#before")
    assert page.evaluate(PIXELS, "#images img") == before
    page.click("#before")
    assert page.evaluate(PIXELS, "#images img") == after


@pytest.mark.slow
def test_variations_of_an_image_are_generated(page: Any) -> None:
    """Four images, each of which can be chosen, looked at in large, and edited."""
    generate(page, "a cactus, 3d style", seed=5, num_inference_steps=8)
    page.click("#vary")
    wait_for_status(page, "4 variations", seconds=180)
    sources = page.eval_on_selector_all("#images img", "all => all.map((each) => each.src)")
    assert len(set(sources)) == 4
    shown = "all => all.map((each) => each.src)"
    page.click("#before")
    assert page.eval_on_selector_all("#images img", shown)[0] != sources[0]
    page.click("#images button >> nth=2")
    assert page.eval_on_selector_all("#images img", shown) == sources, "the source stood in the first one's place"
    page.click("#reuse")
    assert "gives another one" in page.inner_text("#status"), "it promised the same image, without its source"
    assert page.get_attribute("#download", "href") == sources[2]
    page.click("#large")
    assert page.get_attribute("#viewed", "src") == sources[2]
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#viewed", "src") == sources[3]
    page.keyboard.press("Escape")
    wait_until(page, "!document.getElementById('viewed').checkVisibility()")
    page.evaluate("window.last = [...document.querySelectorAll('#images img')][3].src")
    wait_until(
        page, "document.getElementById('download').getAttribute('href') === last"
    )  # chosen by the closing itself


PIXELS = """async (selector) => {
    const image = document.querySelector(selector); await image.decode();
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0);
    const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    const of = (i) => data[4 * i] << 16 | data[4 * i + 1] << 8 | data[4 * i + 2];
    return Array.from({ length: data.length / 4 }, (_, i) => of(i));
}"""
