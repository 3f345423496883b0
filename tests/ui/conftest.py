"""A JupyterLab and a browser for all tests of this folder."""

from pathlib import Path

import chromium
import lab
import pytest
from playwright.sync_api import expect, sync_playwright

FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()


@pytest.fixture(scope="session")
def browser():
    path = chromium.find()
    if path is None:
        pytest.exit(chromium.MISSING, returncode=1)
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def course(tmp_path_factory) -> Path:
    """A copy of the course, to run in."""
    folder = tmp_path_factory.mktemp("course")
    lab.copy_course(folder)
    return folder


@pytest.fixture(scope="session")
def open_notebook(browser, course):
    """Opens a notebook by its name."""
    with lab.serve(course) as url:
        yield lambda name: lab.opened(browser, url, course / "notebooks" / f"{name}.ipynb")
