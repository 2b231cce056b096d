"""A real browser for the pages: how it is found and started, and waiting that the pages' policy allows."""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run", "--disable-quic"]  # fmt: skip
DESKTOP: dict[str, Any] = {"viewport": {"width": 1100, "height": 800}}
#: As playwright's own list of devices has it; Chromium ignores the browser's name in it.
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 664}, "device_scale_factor": 3, "is_mobile": True, "has_touch": True,
}  # fmt: skip

PATIENCE_MS = 120_000  #: of the browser's start and of each action; a busy machine takes longer than Playwright's 30 s

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")


@contextmanager
def open_browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Any, url: str, **context: Any) -> Any:
    """Open a page in a context of its own; `page.problems` collects script errors and requests to other hosts."""
    page = browser.new_context(**({} if context else DESKTOP) | context).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: "Content Security Policy" in message.text and page.problems.append(message.text))
    page.on("request", lambda request: page.problems.append(request.url)
            if not request.url.startswith((url, "data:", "blob:")) else None)  # fmt: skip
    page.goto(url)
    return page


def wait_until(page: Any, condition: str, seconds: float = 180.0) -> None:
    """Poll from outside: Playwright's own waiting evaluates strings in the page, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        shown = page.inner_text("#status")
        assert time.monotonic() < deadline, f"{condition} did not come true within {seconds:g} s; status: {shown!r}"
        page.wait_for_timeout(30)


def wait_for_status(page: Any, text: str, seconds: float = 180.0) -> None:
    """Wait until the line under the image contains the text."""
    wait_until(page, f"document.getElementById('status').textContent.includes({text!r})", seconds)


def in_view(page: Any, selector: str) -> bool:
    """True if the whole element is inside the viewport, and nothing covers its middle."""
    return bool(page.eval_on_selector(selector, """node => {
        const box = node.getBoundingClientRect(), middle = [box.x + box.width / 2, box.y + box.height / 2];
        const top = document.elementFromPoint(...middle);
        return box.top >= -1 && box.bottom <= innerHeight + 1 && (node.contains(top) || top.contains(node));
    }"""))  # fmt: skip


def overflow(page: Any) -> int:
    """Pixels by which the page is wider than the screen, on which a phone would then zoom out."""
    return int(page.evaluate("document.documentElement.scrollWidth")) - int(page.viewport_size["width"])


def pixels(url: str) -> Any:
    """The pixels of a data: URL, (height, width, 3) in 0..255."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(float)


def assert_same_image(url: str, other: str) -> None:
    """Two data: URLs show one image up to rounding, which company in a batch changes: PSNR above 30 dB."""
    error = float(np.mean((pixels(url) - pixels(other)) ** 2))
    assert error < 255**2 * 10 ** (-30 / 10), f"two images of one seed differ: mean squared error {error:.1f} of 65025"
