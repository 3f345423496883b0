"""The expected pictures are those that a run of the course drew, and their captions say which."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest

from wm_lib import checkpoints, cli
from wm_lib.course import expected, minutes
from wm_lib.errors import StageError

ROOT = Path(expected.__file__).parent.parent.parent
SHOWN = re.compile(r"^# !\[(.+)\]\(\.\./assets/figures/(\w+)\.png\)\n#\n# (.+)$", re.MULTILINE)
HEADER = "# ---\n# jupyter:\n#   jupytext:\n#     formats: ipynb,py:percent\n# ---\n\n"
PLOT = "draw(1)\ndraw(2)"
NOTEBOOK = f"""{HEADER}# %% [markdown]
# # 00 Title
# **A question?**

# %%
{PLOT}

# %% [markdown]
# ![two bars](../assets/figures/00_bars.png)

# %% [markdown]
# Explained.
"""


# --- In this repository


@pytest.mark.parametrize("script", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_shows_a_picture_or_two_and_says_where_from(script: Path) -> None:
    index = checkpoints.read_json(ROOT / "assets" / "figures" / "index.json")["figures"]
    text = script.read_text(encoding="utf-8")
    shown = SHOWN.findall(text)
    at_least = 0 if script.stem == "01_diagnostics" else 1  # that one has tables, and no plot
    assert at_least <= len(shown) <= 2 and len(shown) == len(re.findall(r"\.\./assets/figures/[^)]*\.png", text))
    for alternative, name, caption in shown:
        assert name.startswith(script.stem[:3]) and len(alternative) > 20
        assert re.findall(r"`(\w+)`", caption) == [index[name]["budget"]]


def test_every_picture_is_small_and_shown() -> None:
    pictures = sorted((ROOT / "assets" / "figures").glob("*.png"))
    assert 8 <= len(pictures) <= 16
    texts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.py"))
    assert {path.stem for path in pictures} == {name for _, name, _ in SHOWN.findall(texts)}
    assert {path.stem for path in pictures} == set(checkpoints.read_json(ROOT / expected.INDEX)["figures"])
    for path in pictures:
        assert path.stat().st_size <= 120_000 and cv2.imread(str(path)).shape[1] <= 800, path.name


# --- Publishing, from a small clone and a run of it


def png(width: int, noisy: bool = False, margin: int = 0) -> bytes:
    """A picture, black to nearly white from left to right, 300 high; or noise, 1200 high."""
    pixels = np.repeat(np.linspace(0, 250, width).astype(np.uint8)[None, :, None], 300, axis=0).repeat(3, axis=2)
    if noisy:
        pixels = np.random.default_rng(0).integers(0, 256, (4 * len(pixels), width, 3), dtype=np.uint8)
    pixels = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)
    return cv2.imencode(".png", pixels)[1].tobytes()


def run_in(clone: Path, picture: bytes | None, budget: str = "smoke", **changes: object) -> Path:
    """What a finished run leaves; None: its cell drew nothing."""
    output = clone / "build" / "course" / budget
    output.mkdir(parents=True, exist_ok=True)

    def drawn(content: bytes) -> nbformat.NotebookNode:
        data = {"image/png": base64.b64encode(content).decode(), "text/plain": "<Figure>"}
        return nbformat.v4.new_output("execute_result", data=data)

    outputs = [nbformat.v4.new_output("stream", text="words\n"), *([drawn(picture)] if picture else [])]
    # What the cells around it drew is never taken for it.
    before, after = (nbformat.v4.new_code_cell("other()", outputs=[drawn(png(5))]) for _ in range(2))
    cells = [before, nbformat.v4.new_code_cell(PLOT, outputs=outputs), after]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), output / "00_a.ipynb")
    machine = {"system": "Linux", "processor": "x", "cores": 2}
    record = {"name": "00_a", "minutes": 3.0, "measured": True, "commit": "abc", "machine": machine}
    course = {"schema": 1, "parameters": {"budget": budget, "seed": 0, "run_dir": "x"}, "notebooks": [record | changes]}
    checkpoints.write_json(output / "course.json", course)
    return output


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks" / "00_a.py").write_text(NOTEBOOK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def published(output: Path, clone: Path) -> list[str]:
    return expected.publish(expected.read_course(output, clone), output, clone)


def test_the_picture_of_the_cell_above_is_shipped_and_its_budget_said(clone: Path) -> None:
    script, shipped = clone / "notebooks" / "00_a.py", clone / "assets" / "figures" / "00_bars.png"
    assert published(run_in(clone, png(640, margin=9)), clone) == []
    first, drawn = script.read_text(), cv2.imdecode(np.frombuffer(png(640), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_allclose(cv2.imread(str(shipped))[4:-4, 4:-4].astype(int), drawn, atol=2)
    assert [(alternative, name) for alternative, name, _ in SHOWN.findall(first)] == [("two bars", "00_bars")]
    assert "drawn at budget `smoke`; nothing has learned anything" in SHOWN.findall(first)[0][2]
    assert published(run_in(clone, png(1600), "laptop", commit="def"), clone) == []
    second = script.read_text()
    assert "drawn at budget `laptop`.*" in SHOWN.findall(second)[0][2]
    for text in (first, second):  # the caption is all that was added
        assert re.sub(r"(\.png\)\n)#\n.*\n", r"\1", text) == NOTEBOOK
    assert cv2.imread(str(shipped)).shape == (150, 800, 3)
    index = checkpoints.read_json(clone / "assets" / "figures" / "index.json")
    assert index == {"schema": 1, "figures": {"00_bars": {"budget": "laptop", "commit": "def"}}}


def test_what_a_run_did_not_draw_stays_as_it_was(clone: Path) -> None:
    assert published(run_in(clone, None), clone) == ["00_bars"]
    assert (clone / "notebooks" / "00_a.py").read_text() == NOTEBOOK
    published(run_in(clone, png(640)), clone)
    before = (clone / "notebooks" / "00_a.py").read_text()
    assert published(run_in(clone, None, "laptop"), clone) == ["00_bars"]
    assert (clone / "notebooks" / "00_a.py").read_text() == before and expected.read(clone)["00_bars"][
        "budget"
    ] == "smoke"


def test_a_picture_that_is_not_shown_any_more_is_taken_away(clone: Path) -> None:
    published(run_in(clone, png(640)), clone)
    script = clone / "notebooks" / "00_a.py"
    script.write_text(script.read_text().replace("00_bars", "00_other"))
    published(run_in(clone, png(640)), clone)
    assert [path.name for path in sorted((clone / "assets" / "figures").iterdir())] == ["00_other.png", "index.json"]
    assert list(expected.read(clone)) == ["00_other"]


def test_a_heavy_picture_is_refused_and_nothing_is_written(clone: Path) -> None:
    with pytest.raises(StageError, match="the picture 00_bars has .* bytes, at most 120,000"):
        published(run_in(clone, png(800, noisy=True)), clone)
    assert not (clone / "assets").exists() and (clone / "notebooks" / "00_a.py").read_text() == NOTEBOOK


def test_only_a_finished_run_of_the_readers_own_notebooks_is_published(clone: Path) -> None:
    with pytest.raises(StageError, match="no run of the course in .*; make one with: wm course --budget full"):
        expected.read_course(clone / "full", clone)
    output = run_in(clone, png(640), name="00_other")
    with pytest.raises(StageError, match="has no 00_a yet"):
        expected.read_course(output, clone)
    output = run_in(clone, png(640))
    course = checkpoints.read_json(output / "course.json")
    course["parameters"]["task"] = "pong"
    checkpoints.write_json(output / "course.json", course)
    with pytest.raises(StageError, match="ran with another task than a reader's"):
        expected.read_course(output, clone)


def test_the_command_publishes_both_and_updates_the_twin(clone: Path, capsys: pytest.CaptureFixture) -> None:
    run_in(clone, png(640))
    assert cli.main(["course", "--budget", "smoke", "--publish", "--json", "said.json"]) == 0
    assert capsys.readouterr().out == "published: 00_bars; minutes of smoke\n"
    twin = nbformat.read(clone / "notebooks" / "00_a.ipynb", as_version=4)
    assert "*Minutes on two cores: smoke 3.0.*" in twin.cells[0].source
    assert twin.cells[2].source.endswith(expected.caption("smoke"))
    said = checkpoints.read_json(clone / "said.json")
    assert said["not_drawn"] == [] and said["minutes"]["smoke"]["notebooks"] == {"00_a": 3.0}
    run_in(clone, png(320), measured=False)
    assert cli.main(["course", "--budget", "smoke", "--publish"]) == 1
    assert "minutes are not published, 00_a found work done before" in capsys.readouterr().err
    assert cv2.imread(str(clone / "assets" / "figures" / "00_bars.png")).shape[1] == 320  # pictures are, all the same
    assert (clone / minutes.PATH).exists()
