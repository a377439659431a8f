"""Fixtures for tests with the Chromium of the system, driven by Playwright; no browser is downloaded."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 90
"""Time limit for everything a test waits for in a page; a busy machine draws slowly."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for the tests of a file."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)} is on the PATH (apt-get install chromium)")
    if find_spec("playwright") is None:
        pytest.skip("Playwright is not installed (pip install '.[test]')")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * SECONDS)
    # As root Chromium refuses to start with its sandbox; without a GPU the projector draws by software.
    options = ["--enable-unsafe-swiftshader", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options, timeout=1000 * SECONDS)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium) -> Iterator[Any]:
    """An empty page. `tab.requests` are the requested URLs; `tab.errors` are errors on its console."""
    page = chromium.new_page(viewport={"width": 1500, "height": 1100})
    page.set_default_timeout(1000 * SECONDS)
    page.requests, page.errors = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
