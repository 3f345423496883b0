"""A JupyterLab of its own, and a notebook in it as a learner's browser shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import nbformat
from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect

from wm_lib.tasks import TASKS

ROOT = Path(__file__).parents[2]
START, RUN = 120.0, 300.0  # seconds that Lab and a whole notebook may take
TRIES = 3  # within START: a kernel's first word sometimes goes by before the page listens
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # all cells are in the page, also those below
}
CONTEXT = "window.jupyterapp?.shell.currentWidget?.sessionContext"  # of the notebook on the screen
IDLE = f"""() => {{
    const context = {CONTEXT}, kernel = context?.session?.kernel
    return context?.isReady && kernel?.connectionStatus === "connected" && kernel.status === "idle"
}}"""
STATE = f"""() => {{
    const context = {CONTEXT}, kernel = context?.session?.kernel
    return `ready: ${{context?.isReady}}, connection: ${{kernel?.connectionStatus}}, kernel: ${{kernel?.status}}, `
        + `asked: ${{document.querySelector(".jp-Dialog")?.textContent}}`
}}"""
# No cell waits any longer, though some have run: after an error those below it never do.
FINISHED = f"""() => {{
    const prompts = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")].map(p => p.textContent)
    return ({IDLE})() && prompts.some(text => /[0-9]/.test(text)) && !prompts.some(text => text.includes("*"))
}}"""


def copy_course(folder: Path) -> None:
    """What the notebooks read, so that what they write stays out of the repository.

    What `make test` has trained is found and not made again: here it is the page that is tested.
    """
    for name in ("notebooks", "assets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", folder)  # marks the folder that runs/ is made in
    for name in TASKS:
        if (made := ROOT / "runs" / "smoke" / name).exists():
            shutil.copytree(made, folder / "runs" / "smoke" / name)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """JupyterLab over a folder, at budget smoke and with settings of its own; yields its address."""
    own = folder / "jupyter"
    (own / "config" / "labconfig").mkdir(parents=True)
    (own / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
    environment = {f"JUPYTER_{name.upper()}_DIR": str(own / name) for name in ("config", "data", "runtime")}
    environment |= {f"JUPYTERLAB_{name.upper()}_DIR": str(own / name) for name in ("settings", "workspaces")}
    environment |= {"JUPYTER_PREFER_ENV_PATH": "1", "IPYTHONDIR": str(own / "ipython"), "WM_BUDGET": "smoke"}
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    options += [
        "--IdentityProvider.token=",
        "--LabApp.extension_manager=readonly",
        "--LabApp.expose_app_in_browser=True",
    ]
    command = [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"]
    with (own / "log").open("w+b") as log:
        server = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
        try:
            yield _answering(server, own)
        finally:
            server.terminate()  # ends the kernels as well
            try:
                server.wait(START)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _answering(server: subprocess.Popen, own: Path) -> str:
    """The server's address once its API answers."""
    opener = build_opener(ProxyHandler({}))
    for _ in range(int(START / 0.2)):
        try:
            server.wait(0.2)
            break
        except subprocess.TimeoutExpired:
            pass
        for path in (own / "runtime").glob("jpserver-*.json"):
            try:
                url = json.loads(path.read_text())["url"]
                with opener.open(f"{url}api/status", timeout=START):
                    return url
            except (ValueError, URLError):
                pass  # half a file, or not yet listening
    raise AssertionError(f"JupyterLab does not answer; it said:\n{(own / 'log').read_text()[-3000:]}")


class LabNotebook:
    """A notebook in JupyterLab, in a page of its own.

    Args:
        page: Shows it.
        path: Where it lies.
    """

    def __init__(self, page: Page, path: Path) -> None:
        self.page, self.path = page, path

    def run_all(self) -> None:
        """Run > Run All Cells."""
        self._choose("Run", "Run All Cells")

    def wait(self) -> None:
        """Until nothing runs or waits any more.

        Raises:
            AssertionError: It took too long; says which cell was running.
        """
        try:
            self.page.wait_for_function(FINISHED, timeout=RUN * 1000, polling=250)
        except TimeoutError as error:
            waiting = self.page.locator(".jp-CodeCell", has=self.page.get_by_text("[*]:", exact=True))
            said = [where.first.inner_text() for where in (self.page.locator(".jp-Dialog"), waiting) if where.count()]
            raise AssertionError(f"{self.path.name} is not done: {error}\n" + "\n".join(said)) from None

    def save(self) -> nbformat.NotebookNode:
        """File > Save Notebook; returns what is on the disk then."""
        with self.page.expect_response(lambda reply: reply.request.method == "PUT" and self.path.name in reply.url):
            self._choose("File", "Save Notebook")
        return nbformat.read(self.path, as_version=4)

    def widgets(self) -> set[str]:
        """The names of the course's own widgets that it shows."""
        classes = self.page.locator(".wm-widget").evaluate_all("boxes => boxes.flatMap(box => [...box.classList])")
        return {name for name in classes if name.startswith("wm-")} - {"wm-widget"}

    def code_cell(self, source: str) -> Locator:
        """The cell of code that holds these words."""
        cells = [cell for cell in nbformat.read(self.path, as_version=4).cells if cell.cell_type == "code"]
        (number,) = [number for number, cell in enumerate(cells) if source in cell.source]
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def _choose(self, menu: str, item: str) -> None:
        self.page.locator(".lm-MenuBar-itemLabel").get_by_text(menu, exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()


@contextmanager
def opened(browser: Browser, url: str, path: Path) -> Iterator[LabNotebook]:
    """Open a notebook in a new workspace; its kernel ends with it."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(START * 1000)
    try:
        page.goto(f"{url}lab/workspaces/{path.stem}/tree/notebooks/{path.name}")
        _until_idle(page)
        yield LabNotebook(page, path)
    finally:
        page.evaluate(f"{CONTEXT}?.shutdown()")
        page.close()


def _until_idle(page: Page) -> None:
    """Until the kernel has started; a page that never hears of it is loaded again, as a learner would.

    Raises:
        AssertionError: It did not, three times; says how far it came.
    """
    for _ in range(TRIES):
        try:
            return page.wait_for_function(IDLE, timeout=START / TRIES * 1000)
        except TimeoutError:
            state = page.evaluate(STATE)
            page.reload()
    raise AssertionError(f"no kernel for {page.url}: {state}")


def errors(notebook: nbformat.NotebookNode) -> str:
    """The tracebacks in a notebook that ran, without colours; empty if there are none."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    found = ["\n".join(output.traceback) for output in outputs if output.output_type == "error"]
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(found))


def picture(widget: Locator) -> str:
    """What its picture is now: an address that changes with the picture's bytes."""
    return widget.locator("img").first.get_attribute("src") or ""


def drag(slider: str) -> Callable[[Locator], None]:
    """Drag a widget's slider of this name to its other half, in one go."""

    def act(widget: Locator) -> None:
        one = widget.locator(".widget-slider").filter(has_text=slider).first
        track, handle, mouse = one.locator(".noUi-target"), one.locator(".noUi-handle"), widget.page.mouse
        handle.hover()
        box, grip = track.bounding_box(), handle.bounding_box()
        assert box and grip
        far = 0.2 if grip["x"] + grip["width"] / 2 > box["x"] + box["width"] / 2 else 0.8
        mouse.down()
        mouse.move(box["x"] + far * box["width"], box["y"] + box["height"] / 2)
        mouse.up()

    return act


def press(button: str) -> Callable[[Locator], None]:
    """Click a widget's button of this name."""
    return lambda widget: widget.get_by_role("button", name=button, exact=True).click()


def expect_other_picture(widget: Locator, before: str) -> None:
    """Wait until its picture is another one than before, and drawn."""
    image = widget.locator("img").first
    expect(image).not_to_have_attribute("src", before)
    expect_drawn(image)


def expect_drawn(image: Locator) -> None:
    """Wait until a picture is there, and no broken one."""
    expect(image).to_be_visible()
    expect(image).not_to_have_js_property("naturalWidth", 0)
