"""The playground's editor in a real browser, on the fake engine, which is slow enough to watch."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.images.codec import read_metadata
from server.worker.engine.fake import FAKE_ENGINE
from tests.end_to_end.browser import needs_browser, open_page, wait_for_status, wait_until
from tests.end_to_end.conftest import serving
from tests.server.harness import Hold

pytestmark = [pytest.mark.slow, needs_browser]
SLOW_MS = 300  # a step; the lower half of the fake's images has 8 tokens, so an edit takes up to 2.4 s


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("fake"), FLUID_ENGINE=FAKE_ENGINE, FLUID_FAKE_STEP_MS=str(SLOW_MS)) as url:
        yield url


@pytest.fixture
def first(browser: Any, service_url: str) -> Iterator[Any]:
    """Open the page, with two decoding steps set."""
    page = open_page(browser, service_url)
    wait_until(page, "document.querySelectorAll('#examples button').length > 0")
    page.click("#options summary")
    page.fill("#num_inference_steps", "2")
    yield page
    assert page.problems == []
    page.context.close()


@pytest.fixture
def page(first: Any) -> Any:
    """Open the editor on an image whose lower half is painted, with settings of its own."""
    first.fill("#prompt", "a cat")
    first.click("#generate")
    wait_for_status(first, "Generated in")
    first.click("#editPart")
    first.wait_for_selector("#canvas:visible")
    first.fill("#prompt", "a dog")
    first.click("#lower")
    return first


def painted(page: Any) -> int:
    """The share of the mask that is painted, in percent."""
    text = page.inner_text("#painted")
    return 0 if text.startswith("Nothing") else int(text.split(" %")[0])


def test_an_edit_uses_every_option(page: Any) -> None:
    """The form used to omit quality, steps, guidance, file format and number of images, so edits ignored them."""
    for name, value in {"n": 2, "seed": 41, "num_inference_steps": 3, "diffusion_steps": 5, "guidance_scale": 2.5,
                        "temperature": 0.9}.items():  # fmt: skip
        page.fill(f"#{name}", str(value))
    for name, choice in {"guidance_schedule": "constant", "order": "halton", "output_format": "webp"}.items():
        page.select_option(f"#{name}", choice)
    page.click("#generate")
    wait_for_status(page, "Only the painted part was generated.")
    links = page.eval_on_selector_all("#images img", "all => all.map((each) => each.src)")
    recipes = [read_metadata(base64.b64decode(link.split("base64,")[1])) or {} for link in links]
    assert [recipe["seed"] for recipe in recipes] == [41, 42]
    assert all(link.startswith("data:image/webp") for link in links)
    for name, value in {
        "prompt": "a dog", "num_inference_steps": 3, "diffusion_steps": 5, "guidance_scale": 2.5, "temperature": 0.9,
        "guidance_schedule": "constant", "order": "halton",
    }.items():  # fmt: skip
        assert recipes[0][name] == value


def test_an_edit_without_paint_asks_for_it(page: Any) -> None:
    """The service would generate the whole image again; a person who opened the editor wants a part."""
    page.click("#clear")
    page.click("#generate")
    assert "Paint over the part" in page.inner_text("#status")
    assert page.evaluate("document.activeElement.id") == "canvas"


def test_a_restored_edit_does_not_promise_the_same_image(page: Any) -> None:
    """The page used to promise the same image, although Generate does not know the source image of the edit."""
    page.click("#generate")
    wait_for_status(page, "Only the painted part was generated.")
    page.click("#recent button")
    assert page.input_value("#prompt") == "a dog" and page.input_value("#num_inference_steps") == "2"
    assert "whole new image" in page.inner_text("#status")
    page.click("#recent button >> nth=1")
    assert "the same image again" in page.inner_text("#status")


def test_text_beside_a_picture_is_pasted_as_text(page: Any) -> None:
    """Office programs copy both: the text was lost, and the picture opened in the editor."""
    prevented = page.evaluate("""() => {
        const data = new DataTransfer(), prompt = document.getElementById('prompt');
        data.setData('text/plain', 'a cat');
        data.items.add(new File(['x'], 'cells.png', { type: 'image/png' }));
        const paste = new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });
        prompt.dispatchEvent(paste);
        return paste.defaultPrevented;
    }""")
    assert not prevented


def test_edits_run_one_at_a_time_and_can_be_canceled(page: Any, tmp_path: Path) -> None:
    """A second request used to be possible, and there was no Cancel. The mask outlives a cancellation."""
    hold = Hold(tmp_path)
    page.fill("#num_inference_steps", "8")
    page.fill("#prompt", hold.prompt())
    page.click("#generate")
    page.wait_for_selector("#cancel:visible")
    assert page.get_attribute("#generate", "aria-disabled") == "true"
    jobs = page.evaluate("window.runs = run.key")
    page.press("#prompt", "Enter")  # submits the form although a request is running
    page.evaluate("""() => { window.told = []; const line = document.getElementById("status");
        new MutationObserver(() => told.push(line.textContent)).observe(line, { childList: true, subtree: true }); }""")
    page.click("#recent button")
    wait_until(page, "told.some((text) => text.includes('cancel it'))")  # until the next step is told
    assert page.evaluate("run.key") == jobs
    page.click("#cancel")
    wait_for_status(page, "Canceled.")
    hold.release()
    assert page.get_attribute("#generate", "aria-disabled") is None
    assert not page.is_visible("#cancel") and page.is_visible("#canvas") and painted(page) >= 50


def test_another_link_in_the_same_tab_is_loaded(page: Any) -> None:
    """The browser does not reload the page for such a link, so it had no effect; earlier settings must not remain."""
    page.evaluate("location.hash = 'prompt=a+bird&seed=5'")
    wait_until(page, "document.getElementById('prompt').value === 'a bird'")
    assert (page.input_value("#seed"), page.input_value("#num_inference_steps")) == ("5", "")
    assert "Settings of the link" in page.inner_text("#status")


def test_paint_is_counted_once_per_stroke(page: Any) -> None:
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
    assert page.evaluate("counts") == 1 and painted(page) > 0


def test_the_mask_can_be_undone_and_redone(page: Any) -> None:
    """By button and by Ctrl+Z, stroke by stroke; clearing and inverting are strokes too."""
    page.focus("#canvas")
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#painted").startswith("Brush at ")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Space")
    both = painted(page)
    assert both > 50
    page.click("#undo")
    assert painted(page) == 50
    page.click("#redo")
    assert painted(page) == both
    page.click("#clear")
    assert painted(page) == 0
    page.focus("#canvas")
    page.keyboard.press("Control+z")
    assert painted(page) == both
    page.keyboard.press("Control+z")
    page.click("#invert")
    assert painted(page) == 50 and page.get_attribute("#redo", "aria-disabled") == "true"
    page.click("#undo")
    page.click("#undo")
    assert painted(page) == 0 and page.get_attribute("#undo", "aria-disabled") == "true"


def test_the_mask_can_be_painted_and_erased_by_keyboard(page: Any) -> None:
    page.click("#clear")
    page.focus("#canvas")
    page.keyboard.press("Space")
    small = painted(page)
    for _ in range(3):
        page.keyboard.press("]")
    page.keyboard.press("Space")
    assert painted(page) > small, "a larger brush"
    page.click("#erase")
    page.focus("#canvas")
    page.keyboard.press("Space")
    assert painted(page) == 0
    page.click("#close")
    assert not page.is_visible("#editor")


def test_an_edit_that_ends_without_an_image_leaves_the_images_there_were(page: Any, tmp_path: Path) -> None:
    """After a canceled edit, closing the editor showed the first page: the images were only in the history."""
    hold = Hold(tmp_path)
    page.fill("#prompt", hold.prompt(step=3))
    shown = page.eval_on_selector_all("#images img", "all => all.map((each) => each.src)")
    page.fill("#num_inference_steps", "8")
    page.click("#generate")
    wait_for_status(page, "step")
    page.click("#cancel")
    wait_for_status(page, "Canceled")
    hold.release()
    assert page.is_visible("#editor")
    page.click("#close")
    assert page.is_visible("#images img") and page.is_visible("#editPart")
    assert page.eval_on_selector_all("#images img", "all => all.map((each) => each.src)") == shown


DROP = """([data, kind]) => {
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0)), transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "own.png", { type: "image/png" }));
    const init = { bubbles: true, cancelable: true };
    document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", { ...init, clipboardData: transfer })
        : new DragEvent("drop", { ...init, dataTransfer: transfer }));
}"""


@pytest.mark.parametrize("way", ["drop", "paste", "file"])
def test_an_image_of_ones_own_is_opened(first: Any, tmp_path: Path, way: str) -> None:
    """Dropped, pasted or chosen; a photograph of another size and shape than the service accepts is fitted."""
    path = tmp_path / "own.png"
    Image.effect_noise((2100, 1050), 80).convert("RGB").save(path)
    if way == "file":
        first.click("#own summary")
        first.set_input_files("#file", path)
    else:
        first.evaluate(DROP, [base64.b64encode(path.read_bytes()).decode(), way])
    first.wait_for_selector("#canvas:visible")
    assert first.evaluate("[$('mask').width, $('mask').height]") == [1024, 1024]
    assert "cut out" in first.inner_text("#status")
    first.click("#lower")
    first.fill("#prompt", "a cat")
    first.click("#generate")
    wait_for_status(first, "Only the painted part was generated.")


def test_the_oldest_image_is_dropped_when_storage_is_full(page: Any) -> None:
    """A browser stores 5 MB per site; when they were full, the newest image used to be lost."""
    page.evaluate("""() => {
        const old = JSON.parse(localStorage.getItem('fluid-recent'))[0], url = old.url + ' '.repeat(1 << 17);
        localStorage.setItem('fluid-recent', JSON.stringify(Array.from({ length: 4 }, () => ({ ...old, url }))));
        for (let size = 1 << 23, filler = ''; size >= 1; size /= 2) {
            try { localStorage.setItem('filler', filler + ' '.repeat(size)); filler += ' '.repeat(size); } catch {}
        }
    }""")
    page.click("#generate")
    wait_for_status(page, "Only the painted part was generated.")
    kept = page.evaluate("JSON.parse(localStorage.getItem('fluid-recent')).map((shot) => shot.settings.prompt)")
    assert kept == ["a dog", "a cat", "a cat", "a cat"]
