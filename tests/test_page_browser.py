"""The page in a browser, by mouse and by keyboard; skipped without Chromium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import compared
import pytest
from pages import HOSTILE, make_run

from resd.report.page import write_page

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.keys import Keys  # noqa: E402

_BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (_BROWSER and _DRIVER), reason="no Chromium here")
_OPTIONS = (
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for option in (*_OPTIONS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.binary_location = _BROWSER
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open a file as a page; at the end it has said nothing, and asked nobody for anything."""

    def opened(file: Path, wide: int = 1280, dark: bool = False, place: str = "") -> Any:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": wide, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get("about:blank")
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(file.as_uri() + place)
        until(browser, lambda: browser.execute_script("return document.body.dataset.drawn"))
        return browser

    yield opened
    assert browser.get_log("browser") == []
    asked = [row["message"] for row in browser.get_log("performance")]
    sent = [message for message in asked if '"Network.requestWillBeSent"' in message]
    assert [m for m in sent if '"url":"file:' not in m and '"url":"data:' not in m] == []


def until(browser: Any, true: Callable[[], Any]) -> None:
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit, browser.find_element("tag name", "body").text[:500]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pages") / "page.html"
    write_page(make_run(place.parent / "run"), place)
    return place


def text(browser: Any, selector: str) -> str:
    return str(browser.find_element("css selector", selector).text)


def press(browser: Any, key: str) -> None:
    browser.switch_to.active_element.send_keys(key)


@pytest.mark.parametrize(("wide", "dark"), [(1280, False), (1280, True), (390, False)])
def test_it_draws_itself_wide_narrow_and_dark(
    open_page: Open, page: Path, wide: int, dark: bool
) -> None:
    seen = open_page(page, wide, dark)
    for part in ("Summary", "Curves", "The playbook's life", "The story of an example"):
        assert part in text(seen, "main")
    assert len(seen.find_elements("css selector", "figure svg")) >= 6
    assert seen.execute_script("return document.documentElement.scrollWidth") <= wide
    ground = seen.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")


def test_no_text_of_a_model_does_anything(open_page: Open, tmp_path: Path) -> None:
    write_page(make_run(tmp_path / "run", text=HOSTILE), tmp_path / "page.html")
    seen = open_page(tmp_path / "page.html")
    for link in seen.find_elements("css selector", ".list a"):
        link.click()
    for button in seen.find_elements("css selector", ".lesson"):
        seen.execute_script("arguments[0].click()", button)
    assert "".join(HOSTILE.split()) in "".join(text(seen, "#story").split())
    assert seen.execute_script("return window.taken") is None
    assert seen.execute_script("return document.images.length") == 0
    assert seen.execute_script("return document.scripts.length") == 2


def test_a_lesson_leads_to_the_story_that_it_was_learnt_from(open_page: Open, page: Path) -> None:
    seen = open_page(page)
    link = seen.find_element("css selector", "#lesson-sai-00003 a")
    assert link.text == "train-0"
    link.click()
    until(seen, lambda: "step 3, reward 0" in text(seen, "#story"))
    assert "lesson 3 said" in text(seen, "#story")
    assert seen.switch_to.active_element.get_attribute("id") == "story-title"
    seen.back()
    seen.forward()
    assert "step 3, reward 0" in text(seen, "#story")


def test_an_address_opens_a_story(open_page: Open, page: Path) -> None:
    seen = open_page(page, place="#story-3")
    assert "train-1 ✓ passed" in text(seen, "#story")


def test_the_playbook_is_shown_as_it_was(open_page: Open, page: Path) -> None:
    seen = open_page(page)
    assert "lesson 3 said" in text(seen, ".lives") and "lesson 1" not in text(seen, ".lives")
    slider = seen.find_element("id", "when")
    slider.send_keys(Keys.HOME)
    assert "after step 1" in text(seen, "#playbook")
    assert "lesson 1 said" in text(seen, ".lives") and "lesson 3" not in text(seen, ".lives")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert "lesson 2 said" in text(seen, ".lives")
    seen.find_element("id", "ever").click()
    assert "died at step 2: no reflection found a use for it" in text(seen, ".lives")
    first = seen.find_element("css selector", "#lesson-sai-00001 .lesson")
    first.send_keys(Keys.ENTER)
    assert "step 1: written by a curation, from train-0" in text(seen, ".lives .more")
    assert "step 2: dropped (no reflection found a use for it)" in text(seen, ".lives .more")


def test_stories_are_filtered_and_sorted(open_page: Open, page: Path) -> None:
    seen = open_page(page)

    def shown() -> list[str]:
        rows = seen.find_elements("css selector", ".list a")
        return [row.get_attribute("href").rpartition("#story-")[2] for row in rows]

    def choose(label: str, option: str) -> None:
        place = f'#stories select[aria-label="{label}"]'
        for item in seen.find_elements("css selector", f"{place} option"):
            if item.text == option:
                item.click()

    assert shown() == ["0", "1", "2", "3", "4", "5"]
    choose("which", "passed")
    assert shown() == ["1", "3", "5"]
    choose("which", "reflection or curation rejected")
    assert shown() == ["2"]
    choose("which", "all")
    choose("order", "largest loss first")
    assert shown()[:3] == ["4", "2", "0"]
    choose("step", "step 2")
    assert shown() == ["2", "3"]
    seen.find_element("css selector", "#stories input[type=search]").send_keys("TRAIN-1")
    assert shown() == ["3"]


def test_tokens_are_walked_by_keyboard(open_page: Open, page: Path) -> None:
    seen = open_page(page, place="#story-0")
    assert "pull -2" in text(seen, ".detail")  # the token of the largest loss is shown first
    tokens = seen.find_elements("css selector", ".tok")
    assert [t.get_attribute("tabindex") for t in tokens] == ["-1", "0"]
    assert "other" in tokens[1].get_attribute("class")
    seen.execute_script("arguments[0].focus()", tokens[1])
    press(seen, Keys.ARROW_LEFT)
    detail = text(seen, ".detail")
    assert "p student 60.7 %, p teacher 90.5 %, pull 0.4, loss 0.1" in detail
    assert "“one”" in detail
    shades = [t.value_of_css_property("background-color") for t in tokens]
    assert shades[0].startswith("rgba(11, 107, 203") and shades[1].startswith("rgba(209, 87, 27")


def test_a_chart_is_read_by_keyboard(open_page: Open, page: Path) -> None:
    seen = open_page(page)
    figure = next(f for f in seen.find_elements("tag name", "figure") if f.text.startswith("Loss"))
    assert "step 3" in figure.text and "0.333" in figure.text
    seen.execute_script("arguments[0].focus()", figure.find_element("tag name", "svg"))
    press(seen, Keys.HOME)
    assert "step 1" in figure.text and "loss 1" in figure.text
    press(seen, Keys.ARROW_RIGHT)
    assert "step 2" in figure.text and "loss 0.5" in figure.text


def test_answers_are_shown_after_any_evaluation(open_page: Open, page: Path) -> None:
    seen = open_page(page)
    for option in seen.find_elements("css selector", "#after option"):
        assert option.text in ("step 0", "step 3 (best)")
    assert text(seen, "#summary").count("✓ passed") == 2


def test_a_page_that_is_made_again_loads_itself_again(open_page: Open, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    done = (run / "done.json").read_text()
    (run / "done.json").unlink()
    write_page(run, tmp_path / "page.html", every=1)
    seen = open_page(tmp_path / "page.html", place="#story-3")
    assert "not complete" in text(seen, "header")
    (run / "done.json").write_text(done)
    write_page(run, tmp_path / "page.html")
    until(
        seen, lambda: "complete" in text(seen, "main") and "not complete" not in text(seen, "main")
    )
    assert "train-1 ✓ passed" in text(seen, "#story")  # and is where it was
    assert not seen.find_elements("css selector", ".live")


def test_a_comparison_leads_to_its_runs(open_page: Open, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert compared.go(output, compared.Fake(), seeds="0,1")[0] == 0
    write_page(output, output / "report.html")
    seen = open_page(output / "report.html", 390)
    assert seen.execute_script("return document.documentElement.scrollWidth") <= 390
    assert "sdpo minus resd" in text(seen, "#pairs")
    seen.find_element("link text", "sdpo, seed 1").click()
    until(seen, lambda: "sdpo on lab" in text(seen, "body"))
