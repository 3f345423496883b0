"""Every notebook as a learner meets it: run from JupyterLab's menu, in a real browser, with hands on its widgets."""

import nbformat
import pytest
from lab import ROOT, drag, errors, expect_drawn, expect_other_picture, picture, press
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import expect

from wm_lib.pipeline import Pipeline

FIGURES = {  # words from the cell with the picture that matters most; the longest notebook first
    "07_curriculum": "plots.scores(",
    "01_diagnostics": "plots.Board(",
    "06_dream": "films.film(np.concatenate(",
    "02_data_collection": 'title="First frames"',
    "05_controller": "films.film(",
    "03_vae": '"V draws": drawn',
    "04_mdn_rnn": "plots.frame_rows(shown",
    "08_results": "plots.scores(",
    "00_start_here": "plots.frame_rows(",
}
WIDGETS = {  # what is done to each of a notebook's widgets, one after the other; each makes another picture
    "03_vae": {
        "wm-latent-sliders": [drag("z["), press("Back to the frame")],
        "wm-which-z": [drag("rank of z"), drag("frame")],
    },
    "04_mdn_rnn": {"wm-temperature": [drag("temperature"), drag("dream no.")]},
    "05_controller": {"wm-cma-2d": [press("Next"), drag("generation"), drag("first sigma")]},
    "06_dream": {"wm-play-dream": [press("gas"), press("Dream from here"), press("New game")]},
    "08_results": {"wm-step-through": [press("Next"), drag("decision")]},
}


def test_curriculum_is_held_woken_and_stopped_by_the_buttons_of_its_board(open_notebook, course):
    """The kernel is busy all the while: the next cell waits for the end."""
    original = course / "notebooks" / "07_curriculum.ipynb"
    copy = parameterize_notebook(load_notebook_node(str(original)), {"run_dir": str(course / "runs" / "board")})
    copy.metadata.pop("jupytext")  # it is no pair
    nbformat.write(copy, course / "notebooks" / "board.ipynb")
    with open_notebook("board") as notebook:
        notebook.run_all()
        board = notebook.code_cell("session.board").locator(".jp-Cell-outputArea")
        for button, state in ((None, "running"), ("Pause", "paused"), ("Go on", "running"), ("Stop", "stopped")):
            if button:
                press(button)(board)
            expect(board.get_by_role("cell", name=state, exact=True)).to_have_count(1)
            board.screenshot(path=ROOT / "build" / "ui" / f"board_{state}.png")
        notebook.wait()
        saved = notebook.save()
    assert errors(saved) == ""
    (waited,) = [cell for cell in saved.cells if "session.wait()" in cell.source]
    assert "stopped before its end" in waited.outputs[0].text


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_runs_and_its_widgets_answer(open_notebook, course, name, subtests):
    if name == "08_results":  # shows what the others made, and something even if it is tested alone
        Pipeline.open("car-racing", "smoke", course / "runs" / "smoke").build("evaluate")
    with open_notebook(name) as notebook:
        notebook.run_all()
        notebook.wait()
        saved = notebook.save()
        assert errors(saved) == ""
        assert [cell for cell in saved.cells if cell.cell_type == "code"][-1].execution_count

        figure = notebook.code_cell(FIGURES[name]).locator(".jp-Cell-outputArea")
        expect(figure.locator("img, table").first).to_be_visible()
        for image in figure.locator("img").all():
            expect_drawn(image)
        figure.screenshot(path=ROOT / "build" / "ui" / f"{name}.png")

        known = WIDGETS.get(name, {})
        assert notebook.widgets() == set(known)
        for widget, acts in known.items():
            with subtests.test(widget):
                box = notebook.page.locator(f".{widget}")
                for act in acts:
                    before = picture(box)
                    act(box)
                    expect_other_picture(box, before)
                box.screenshot(path=ROOT / "build" / "ui" / f"{name}_{widget}.png")
