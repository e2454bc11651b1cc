"""The built pages, as a reader gets them: in headless Chromium, and link by link."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import nbformat
import numpy as np
import pytest

SITE = Path(__file__).parents[1] / "_build" / "site" / "_build" / "html"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("book/**/*.html")) if SITE.exists() else []
EXECUTED, COMMITTED = SITE.parents[2] / "executed", SITE.parents[3] / "book" / "chapters"
CHAPTERS = sorted(path.stem for path in COMMITTED.glob("*.ipynb"))
NEEDED = "VARRED_CI" in os.environ


def absent(reason: str) -> None:
    pytest.fail(reason) if NEEDED else pytest.skip(reason)


def pictures(path: Path) -> list[list[tuple[float | str, ...]]]:
    """What is drawn where: texts, colours and dashes; of each line its ends, its bounding box and its mean height."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []) if "nbval-ignore-output" not in cell.metadata.get("tags", []) else []:
            svg = output.get("data", {}).get("image/svg+xml")
            if svg:
                drawn: list[tuple[float | str, ...]] = [(text,) for text in re.findall(r"<!-- (.*?) -->", svg)]
                for path_data in re.findall(r'<path d="([^"]*)"', svg):
                    x, y = (np.array(re.findall(r"-?[\d.]+(?:e-?\d+)?", path_data), float).reshape(-1, 2)).T
                    middle = np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)) / max(np.ptp(x), 1)
                    drawn.append((x[0], y[0], x[-1], y[-1], x.min(), x.max(), y.min(), y.max(), middle))
                drawn += [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg)]
                drawn += [(float(x), float(y)) for x, y in re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", svg)]
                drawn += [(style,) for style in re.findall(r"(?:stroke|fill|stroke-dasharray): ([^;\"]+)", svg)]
                found.append(drawn)
    return found


class Page(HTMLParser):
    """The links, anchors and pictures of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.anchors.add(values["id"] or "")
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")
        if tag == "img":
            self.images.append(values)


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_pictures_are_those_that_are_committed(name: str) -> None:
    if not (EXECUTED / f"{name}.ipynb").exists():
        absent("the book is not rendered: make book")
    executed, committed = (pictures(folder / f"{name}.ipynb") for folder in (EXECUTED, COMMITTED))
    assert len(executed) == len(committed)
    assert executed == [[pytest.approx(one, abs=0.1) for one in drawn] for drawn in committed]


@functools.cache
def page(name: str) -> Page:
    return Page(SITE / name)


def test_the_book_is_built() -> None:
    if not PAGES:
        absent("the book is not built: run make book first")


@pytest.mark.parametrize("name", PAGES)
def test_no_link_is_broken(name: str) -> None:
    for link in page(name).links:
        target = urlparse(link)
        if target.scheme or link.startswith("//"):
            continue
        path = (SITE / name).parent / unquote(target.path) if target.path else SITE / name
        assert path.exists(), f"{link} leads nowhere"
        if target.fragment and path.suffix == ".html":
            found = page(path.resolve().relative_to(SITE.resolve()).as_posix()).anchors
            assert unquote(target.fragment) in found, f"{link} has no such anchor"


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_has_alternative_text(name: str) -> None:
    for image in page(name).images:
        alt = image.get("alt") or ""
        if "logo" in (image.get("class") or ""):
            continue
        assert len(alt) > 20, image
        assert not alt.endswith((".png", ".svg")), image


@pytest.mark.parametrize("name", PAGES)
def test_no_page_shows_an_error_or_raw_markup(name: str) -> None:
    text = (SITE / name).read_text()
    for bad in ("Traceback (most recent call last)", "{cite", "{eq}`", "{doc}`", "{prf:ref}", ":::{"):
        assert bad not in text, bad


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        absent("Chromium and its driver are not installed (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1280,900",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.parametrize("name", PAGES)
def test_in_the_browser_equations_are_typeset_nothing_is_cut_and_nothing_leaves_the_machine(
    name: str, browser: Any, address: str
) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(f"{address}/{name}")
    raw = browser.execute_script("return document.querySelectorAll('.math').length")
    if raw:
        browser.execute_async_script(
            "const done = arguments[0]; const wait = () => window.MathJax && MathJax.startup && MathJax.startup.promise"
            " ? MathJax.startup.promise.then(() => done()) : setTimeout(wait, 50); wait();"
        )
        typeset = browser.execute_script("return document.querySelectorAll('mjx-container').length")
        failed = browser.execute_script("return document.querySelectorAll('mjx-merror, [data-mjx-error]').length")
        assert typeset >= raw, f"{typeset} of {raw} formulas are typeset"
        assert not failed
    empty = browser.execute_script("return document.querySelectorAll('div.cell_output:empty').length")
    assert not empty, "an output area is empty"
    cut = browser.execute_script(
        "return [...document.querySelectorAll('.bd-article mjx-container[display=true], .bd-article pre')]"
        ".filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 2)"
        ".map(e => [...e.textContent.trim()].slice(0, 40).join(''))"
    )
    assert not cut, f"wider than the text: {cut}"
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    outside = [url for url in urls if not url.startswith((address, "data:", "blob:", "chrome:"))]
    assert not outside, outside
    errors = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "favicon" not in str(entry)
    ]
    assert not errors, errors
