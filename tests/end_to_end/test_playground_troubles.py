"""The playground while something is wrong: each test is a way in which it used to leave a person alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.cli.demo import free_port
from server.launcher.embedded_valkey import EmbeddedValkey
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE
from tests.end_to_end.browser import (
    PHONE,
    in_view,
    needs_browser,
    open_page,
    overflow,
    wait_for_status,
    wait_until,
)
from tests.server.harness import Hold, Service, running_service, start, status_of, until

pytestmark = needs_browser
OFFERED = "document.querySelectorAll('#examples button').length > 0"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


def fake(valkey: EmbeddedValkey, namespace: str, **changes: object) -> Settings:
    settings = Settings(redis_url=valkey.url, namespace=namespace, engine=FAKE_ENGINE, lease_s=1.0, port=free_port())
    return replace(settings, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def service(valkey: EmbeddedValkey) -> Iterator[Service]:
    """A service that no test breaks."""
    with running_service(fake(valkey, "sound", fake_step_ms=40)) as running:
        yield running


@pytest.fixture
def page(browser: Any, service: Service) -> Iterator[Any]:
    page = open_page(browser, service.settings.base_url)
    wait_until(page, OFFERED)
    yield page
    assert page.problems == []
    page.context.close()


def test_on_a_phone_the_image_is_in_view_when_the_button_is_pressed(browser: Any, service: Service) -> None:
    """It used to be below the open list of words, so Generate seemed to do nothing."""
    page = open_page(browser, service.settings.base_url, **PHONE)
    wait_until(page, OFFERED)
    assert in_view(page, "#prompt") and in_view(page, "#generate") and in_view(page, "#frame")
    page.tap("#code summary")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert in_view(page, "#generate"), "the button follows"
    page.tap("#generate")
    wait_until(page, "document.querySelector('#frame').getBoundingClientRect().top >= 0")
    assert in_view(page, "#frame") and page.is_visible("#images figure")
    wait_for_status(page, "Generated in")
    assert in_view(page, "#images img") and in_view(page, "#generate")
    assert overflow(page) <= 0
    assert page.problems == []
    page.context.close()


def test_a_wrong_seed_in_closed_settings_opens_them(page: Any) -> None:
    """The browser used to refuse to submit without a word, because the field that it would point at was hidden."""
    page.eval_on_selector("#seed", "field => { field.value = '7 apples' }")
    page.click("#generate")
    assert page.is_visible("#seed") and page.evaluate("document.activeElement.id") == "seed"
    assert "whole number" in page.inner_text("#seedError") and "Seed" in page.inner_text("#status")
    assert page.get_attribute("#seed", "aria-invalid") == "true"
    page.fill("#seed", "9007199254740993")
    page.click("#generate")
    assert "browsers round larger ones" in page.inner_text("#status")
    page.fill("#seed", "7")
    assert page.query_selector("#seedError") is None and page.get_attribute("#seed", "aria-invalid") is None
    page.click("#generate")
    wait_for_status(page, "Seed 7.")


def test_nothing_takes_the_focus_when_the_page_opens(page: Any) -> None:
    """Typing used to go in front of the prefilled prompt."""
    assert page.evaluate("document.activeElement === document.body")
    page.keyboard.type("x")
    assert page.input_value("#prompt") == "a red apple, 3d style"


def test_placeholders_follow_the_quality(page: Any) -> None:
    """An empty field means the preset's value, which depends on the quality."""
    page.click("#options summary")
    fields = ("num_inference_steps", "diffusion_steps")
    for quality, steps in {"high": "16", "low": "4", "auto": "8"}.items():
        page.select_option("#quality", quality)
        assert [page.get_attribute(f"#{name}", "placeholder") for name in fields] == [steps, steps]
        assert f"{steps} steps" in page.inner_text("#qualityHelp")


def test_a_page_opened_while_redis_is_away_recovers(browser: Any, tmp_path: Path) -> None:
    """It used to show "Cannot read properties of undefined", for good."""
    valkey = EmbeddedValkey(tmp_path)
    settings = fake(valkey, "late")
    service = Service(settings)
    try:
        until(lambda: status_of(f"{settings.base_url}/health/live") == 200, what="the gateway")
        page = open_page(browser, settings.base_url)
        wait_until(page, "document.querySelector('#connection').textContent.includes('queue')")
        assert "Trying again" in page.inner_text("#connection")
        page.click("#generate")  # the request is kept, too
        wait_for_status(page, "Waiting for the service")
        valkey.start()
        service.add_worker()
        wait_until(page, "document.querySelector('#model').dataset.ready === 'true'")
        wait_for_status(page, "Generated in")
        assert page.inner_text("#connection") == "" and page.problems == []
        page.context.close()
    finally:
        service.close()
        valkey.close()


def test_a_lost_gateway_is_told_in_plain_words_and_retried(
    browser: Any, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    """It used to be "Failed to fetch". Here it is killed in the middle of an image, and comes back."""
    service, hold = Service(fake(valkey, "restarted")), Hold(tmp_path)
    service.add_worker()
    try:
        service.client.wait_ready(timeout_s=60)
        page = open_page(browser, service.settings.base_url)
        wait_until(page, OFFERED)
        page.fill("#prompt", hold.prompt())
        page.click("#generate")
        wait_for_status(page, "step 4 of 8")
        service.gateway.kill()
        service.gateway.wait()
        wait_for_status(page, "Waiting for the service")
        told = page.inner_text("#connection")
        assert "does not answer" in told and "Trying again" in told and "fetch" not in page.inner_text("body")
        hold.release()
        service.gateway = start("gateway", service.settings)
        wait_for_status(page, "Generated in")
        assert page.inner_text("#connection") == "" and page.problems == []
        page.context.close()
    finally:
        service.close()


# Lets the first answer under each of the paths begin, and break off within its body.
BREAK_OFF = """(paths) => {
  const real = window.fetch, left = new Set(paths);
  window.fetch = async (path, options) => {
    const answer = await real(path, options), found = [...left].find((each) => String(path).match(each));
    if (!found || !answer.ok) return answer;
    left.delete(found);
    document.documentElement.dataset.broken = (document.documentElement.dataset.broken ?? "") + found;
    const body = new ReadableStream({ pull: (stream) => stream.error(new TypeError("Failed to fetch")) });
    return new Response(body, { status: answer.status, headers: answer.headers });
  };
}"""


def test_an_answer_that_breaks_off_is_asked_for_again(page: Any) -> None:
    """A preview or an image whose body broke off ended the run as "Failed to fetch"."""
    paths = ["/previews/", "/images/[0-9]+$"]
    page.evaluate(BREAK_OFF, paths)
    page.click("#generate")
    wait_for_status(page, "Generated in")
    assert page.evaluate("document.documentElement.dataset.broken") == "".join(paths)
    assert page.is_visible("#images img") and page.inner_text("#connection") == ""


def test_a_killed_worker_is_waited_for(browser: Any, valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """The page used to show the last step, as if it were still being decoded."""
    service, hold = Service(fake(valkey, "killed")), Hold(tmp_path)
    worker = service.add_worker()
    try:
        service.client.wait_ready(timeout_s=60)
        page = open_page(browser, service.settings.base_url)
        wait_until(page, OFFERED)
        page.click("#options summary")
        page.fill("#num_inference_steps", "12")
        page.fill("#prompt", hold.prompt())
        page.click("#generate")
        wait_for_status(page, "step 6 of 12")
        worker.kill()
        worker.wait()
        hold.release()
        wait_for_status(page, "Waiting for a worker")
        assert "of 12" in page.inner_text("#status")
        service.add_worker()
        wait_for_status(page, "Generated in")
        assert page.problems == []
        page.context.close()
    finally:
        service.close()
