"""Expected pictures: what a run of the course drew, shown in the notebooks to those who have not run them.

Below a plot stands `![what it shows](../assets/figures/NAME.png)` as a Markdown cell. That is all there is to choosing
one: publishing takes the picture that the code cell above it drew in the run, and writes below it where it is from.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wm_lib import checkpoints
from wm_lib.errors import StageError

FIGURES = Path("assets/figures")
INDEX = FIGURES / "index.json"
MAX_WIDTH, MAX_BYTES = 800, 120_000
_PICTURE = re.compile(r"!\[[^\]]*\]\(\.\./assets/figures/(\w+)\.png\)")


def read_course(output: Path, root: Path) -> dict[str, Any]:
    """What a finished run of the course left in its folder: `parameters`, and `notebooks`, one record each.

    Raises:
        StageError: There is none, it is not finished, or it had other parameters than a reader's.
    """
    path = output / "course.json"
    if not path.exists():
        raise StageError(f"no run of the course in {output}; make one with: wm course --budget {output.name}")
    course = checkpoints.read_json(path)
    names = {script.stem for script in _scripts(root)}
    if missing := sorted(names - {record["name"] for record in course["notebooks"]}):
        raise StageError(f"{output} has no {', '.join(missing)} yet; the command that began it goes on from there")
    if changed := sorted(set(course["parameters"]) - {"budget", "seed", "run_dir"}):
        raise StageError(
            f"{output} ran with another {', '.join(changed)} than a reader's; run it without, to publish it"
        )
    return course


def publish(course: Mapping[str, Any], output: Path, root: Path) -> list[str]:
    """Ship the pictures that the notebooks' Markdown asks for, and say in index.json and the .py where they are from.

    Args:
        course: What `read_course` returns.
        output: Folder of the executed notebooks.
        root: The repository.

    Returns:
        Names of the pictures that this run did not draw; they stay as they are.

    Raises:
        StageError: A picture is too large. Nothing is written then.
    """
    commits = {record["name"]: record["commit"] for record in course["notebooks"]}
    before, index, drawn, missing = read(root), {}, {}, []
    for script in _scripts(root):
        for name, source in wanted(script):
            picture = _drawn(output / f"{script.stem}.ipynb", source)
            if picture is None:
                missing.append(name)
                index |= {name: before[name]} if name in before else {}
            else:
                drawn[name] = _fit(name, picture)
                index[name] = {"budget": course["parameters"]["budget"], "commit": commits[script.stem]}
    for name, picture in drawn.items():
        (root / FIGURES).mkdir(parents=True, exist_ok=True)
        (root / FIGURES / f"{name}.png").write_bytes(picture)
    for name in before.keys() - index.keys():  # no notebook shows it any more
        (root / FIGURES / f"{name}.png").unlink(missing_ok=True)
    checkpoints.write_json(root / INDEX, {"schema": 1, "figures": index})
    for script in _scripts(root):
        script.write_text(with_captions(script.read_text(encoding="utf-8"), index), encoding="utf-8")
    return missing


def read(root: Path) -> dict[str, dict[str, str]]:
    """What is published: name of a picture -> its `budget` and `commit`."""
    return checkpoints.read_json(root / INDEX)["figures"] if (root / INDEX).exists() else {}


def wanted(script: Path) -> Iterator[tuple[str, str]]:
    """The expected pictures of a notebook: name, and source of the code cell above."""
    import jupytext

    source = ""
    for cell in jupytext.read(script).cells:
        if cell.cell_type == "code":
            source = cell.source
        else:
            yield from ((name, source) for name in _PICTURE.findall(cell.source))


def caption(budget: str) -> str:
    """What stands below an expected picture."""
    learned = "; nothing has learned anything at that budget" if budget == "smoke" else ""
    return f"*What to expect: drawn at budget `{budget}`{learned}.*"


def with_captions(text: str, index: Mapping[str, Mapping[str, str]]) -> str:
    """The text of a notebook's .py with a caption below each picture that is in the index."""

    def said(match: re.Match[str]) -> str:
        known = index.get(match[2])
        return f"{match[1]}#\n# {caption(known['budget'])}\n" if known else match[0]

    return re.sub(rf"^(# {_PICTURE.pattern}\n)(?:#\n# \*What to expect: .*\n)?", said, text, flags=re.MULTILINE)


def _scripts(root: Path) -> list[Path]:
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.py"))


def _drawn(executed: Path, source: str) -> bytes | None:
    """The PNG that the cell with this source drew."""
    import nbformat

    for cell in nbformat.read(executed, as_version=4).cells:
        if cell.cell_type == "code" and cell.source == source:
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    return None


def _fit(name: str, picture: bytes) -> bytes:
    """A PNG with narrow margins and a palette, no wider than `MAX_WIDTH`, and narrower where it has too many bytes.

    Raises:
        StageError: It would have to be less than half as wide.
    """
    from PIL import Image, ImageChops

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    left, top, right, bottom = ImageChops.invert(image).getbbox() or (0, 0, *image.size)
    image = image.crop((max(0, left - 4), max(0, top - 4), min(image.width, right + 4), min(image.height, bottom + 4)))
    for most in (MAX_WIDTH, 3 * MAX_WIDTH // 4, MAX_WIDTH // 2):
        width, small = min(most, image.width), io.BytesIO()
        resized = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        resized.quantize(256).save(small, "png", optimize=True)
        if small.tell() <= MAX_BYTES:
            return small.getvalue()
    raise StageError(
        f"the picture {name} has {small.tell():,} bytes, at most {MAX_BYTES:,} are shipped; draw less in it"
    )
