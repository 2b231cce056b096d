"""Both pages in a real browser: no accessibility violations, nothing from other hosts, all by keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.worker.engine.fake import FAKE_ENGINE
from tests.end_to_end.browser import (
    DESKTOP,
    PHONE,
    in_view,
    needs_browser,
    open_page,
    overflow,
    wait_for_status,
    wait_until,
)
from tests.end_to_end.conftest import serving
from tests.server.harness import Hold

axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
pytestmark = needs_browser
LOOKS = [
    pytest.param({**DESKTOP, "color_scheme": "light"}, id="desktop-light"),
    pytest.param({**PHONE, "color_scheme": "dark"}, id="phone-dark"),
    pytest.param({**DESKTOP, "color_scheme": "dark"}, id="desktop-dark"),
    pytest.param({**PHONE, "color_scheme": "light"}, id="phone-light"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("fake"), FLUID_ENGINE=FAKE_ENGINE, FLUID_FAKE_STEP_MS="200") as url:
        yield url


def violations(page: Any) -> list[str]:
    """What axe-core finds. Its script is evaluated by the browser's debugger, which the page's policy allows."""
    page.evaluate(axe.AXE_SCRIPT)
    found = page.evaluate("axe.run().then((results) => results.violations)")
    return [f"{each['id']}: {json.dumps([node['html'][:200] for node in each['nodes']])}" for each in found]


@pytest.mark.parametrize("look", LOOKS)
def test_the_playground_has_no_accessibility_violation(
    browser: Any, url: str, look: dict[str, Any], tmp_path: Path
) -> None:
    """On the first visit, with all details open, while generating, with results, in the editor, and after a mistake."""
    page = open_page(browser, url, **look, reduced_motion="reduce")
    wait_until(page, "document.querySelectorAll('#examples button').length > 0")
    assert violations(page) == []
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert violations(page) == [] and overflow(page) <= 0
    hold = Hold(tmp_path)
    page.fill("#n", "2")
    page.fill("#prompt", hold.prompt())
    page.click("#generate")
    wait_for_status(page, "step")
    assert violations(page) == []
    hold.release()
    wait_for_status(page, "Generated in")
    assert violations(page) == []
    page.click("#large")
    assert violations(page) == []
    page.click("#viewClose")
    page.click("#editPart")
    page.wait_for_selector("#canvas:visible")
    assert violations(page) == []
    page.fill("#seed", "seven")
    page.click("#generate")
    assert page.is_visible("#seedError") and violations(page) == []
    assert page.problems == []
    page.context.close()


@pytest.mark.parametrize("look", LOOKS)
def test_the_api_reference_has_no_accessibility_violation(browser: Any, url: str, look: dict[str, Any]) -> None:
    """Nothing comes from another host either: FastAPI's own page loads its scripts from a CDN and is blank offline."""
    page = open_page(browser, url, **look)
    page.goto(f"{url}/docs")
    # One operation and one object of each kind look like all others, and axe-core takes 20 s for the whole page.
    page.evaluate("for (const each of document.querySelectorAll('section > article:nth-of-type(n+3)')) each.remove()")
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert violations(page) == [] and page.problems == []
    page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("look", LOOKS)
def test_the_whole_api_reference_has_no_accessibility_violation(browser: Any, url: str, look: dict[str, Any]) -> None:
    page = open_page(browser, url, **look)
    page.goto(f"{url}/docs")
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert violations(page) == [] and overflow(page) <= 0
    page.context.close()


def test_the_api_reference_needs_no_script(browser: Any, url: str) -> None:
    page = open_page(browser, url, **PHONE)
    page.goto(f"{url}/docs")
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert overflow(page) <= 0 and page.evaluate("document.scripts.length") == 0
    page.click("nav a[href='#submit_job']")
    assert in_view(page, "h3#submit_job")
    assert page.problems == []
    page.context.close()


def test_the_theme_follows_the_system_until_it_is_chosen(browser: Any, url: str) -> None:
    """A chosen theme is there before the first paint of the next visit."""
    page = open_page(browser, url, **DESKTOP, color_scheme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    assert "light" in page.inner_text("#themeName")
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light
    page.click("#theme")
    page.click("#theme")
    assert "as the system" in page.inner_text("#themeName") and page.evaluate(ground) == dark
    assert page.problems == []
    page.context.close()


def test_an_image_is_generated_and_edited_by_keyboard_alone(browser: Any, url: str, tmp_path: Path) -> None:
    """Progress is announced in quarters, not at every step; focus is never lost."""
    page = open_page(browser, url)
    wait_until(page, "document.querySelectorAll('#examples button').length > 0")
    page.evaluate("""() => { window.heard = []; new MutationObserver(() => heard.push($('announce').textContent))
        .observe($('announce'), { childList: true, characterData: true, subtree: true }); }""")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt" and page.input_value("#prompt")
    page.keyboard.press("Control+A")
    hold = Hold(tmp_path)
    page.keyboard.type(hold.prompt())
    page.keyboard.press("Enter")
    wait_until(page, "heard.includes('50 % done')")
    hold.release()
    wait_for_status(page, "Generated in")
    assert page.evaluate("document.activeElement.id") == "prompt"
    heard = page.evaluate("heard")
    assert heard[-1].startswith("Generated in") and len(heard) <= 8
    reach(page, "editPart", backwards=True)
    page.keyboard.press("Enter")
    wait_until(page, "document.activeElement.id === 'canvas'")
    page.keyboard.press("Space")
    assert "% painted" in page.inner_text("#painted")
    reach(page, "generate")
    page.keyboard.press("Enter")
    wait_for_status(page, "Only the painted part was generated.")
    assert page.evaluate("document.activeElement.id") == "generate"
    assert page.problems == []
    page.context.close()


def reach(page: Any, wanted: str, *, backwards: bool = False) -> None:
    """Press Tab until the element has the focus, which must be visible on the way."""
    for _ in range(60):
        if page.evaluate("document.activeElement.id") == wanted:
            return
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none", page.evaluate("document.activeElement.outerHTML")[:200]
    raise AssertionError(f"Tab never reaches #{wanted}")


def test_motion_stops_where_it_is_not_wanted(browser: Any, url: str, tmp_path: Path) -> None:
    """With prefers-reduced-motion nothing moves by itself, and Replay shows the steps as numbers."""
    page = open_page(browser, url, **DESKTOP, reduced_motion="reduce")
    wait_until(page, "document.querySelectorAll('#examples button').length > 0")
    still = page.evaluate("$('glimpse').toDataURL()")
    page.click("#generate")
    wait_for_status(page, "Generated in")
    assert page.evaluate("$('glimpse').toDataURL()") == still
    page.click("#replay")
    assert page.get_attribute("#replay", "aria-pressed") == "true"
    numbers = page.evaluate("document.querySelector('figure canvas').toDataURL()")
    page.wait_for_timeout(300)
    assert page.evaluate("document.querySelector('figure canvas').toDataURL()") == numbers
    page.click("#replay")
    assert page.get_attribute("#replay", "aria-pressed") == "false"
    page.context.close()


UNCOVERED = """() => {
    const canvas = document.querySelector('figure canvas'), cell = canvas.width / 4, pen = canvas.getContext('2d');
    // The newest tokens are tinted.
    const clear = (i) => pen.getImageData(i % 4 * cell + 2, Math.floor(i / 4) * cell + 2, 1, 1).data[3] < 255;
    return Array.from({ length: 16 }, (_, i) => i).filter(clear);
}"""


def test_tokens_uncover_the_image_in_their_order(browser: Any, url: str, tmp_path: Path) -> None:
    """Before the first preview everything is covered; then exactly the tokens that the preview holds are not."""
    page = open_page(browser, url, **DESKTOP, reduced_motion="reduce")
    wait_until(page, "document.querySelectorAll('#examples button').length > 0")
    page.click("#options summary")
    page.fill("#seed", "7")
    early, late = Hold(tmp_path), Hold(tmp_path, seed=7)
    page.fill("#prompt", f"{early.prompt(step=1)} {late.prompt(step=7)}")
    page.click("#generate")
    wait_until(page, "document.querySelector('figure canvas') && !document.querySelector('figure canvas').hidden")
    assert page.evaluate(UNCOVERED) == []
    early.release()
    at = page.evaluate("stepOfEach(tokenOrder('random', 7, 4), 8)")
    held = [{i for i, step in enumerate(at) if step <= shown} for shown in (0, 2, 4, 6)]
    seen: list[set[int]] = [set()]
    while len(seen[-1]) < len(held[-1]):
        if (now := set(page.evaluate(UNCOVERED))) not in seen:
            seen.append(now)
    assert all(each in held for each in seen) and len(seen) >= 2, seen
    page.uncheck("#showOrder")
    assert not page.is_visible("figure canvas")
    page.check("#showOrder")
    late.release()
    wait_for_status(page, "Generated in")
    wait_until(page, "getComputedStyle(document.querySelector('figure canvas')).opacity === '0'")
    assert page.problems == []
    page.context.close()
