"""The automated review of a change to the course: findings, each with its file and line.

A thin layer over tools that exist: ruff for the code, jupytext and nbstripout for the notebooks, codespell for every
word. Of our own are a few checks of prose (headings, relative links, alternative texts) and that README's table says
what the manifests say.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wm_lib import compare, report
from wm_lib.errors import StageError, UsageError

Lines = list[tuple[int, str]]  # numbers from 1, and texts
MODULES = ("wm_lib", "tests")  # folders of code
PARAMETERS = "parameters"  # papermill's tag


@dataclass(frozen=True)
class Finding:
    """Something to mend: a path below the root, the line there, and what is wrong in words."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def vet(root: Path, fix: bool = False) -> list[Finding]:
    """Review a clone; with `fix`, first mend what the tools mend safely.

    Args:
        root: Folder of the repository.
        fix: Let ruff mend and format, bring each .ipynb in line with its .py, take outputs out, draw README's tables.

    Raises:
        UsageError: There is no clone at `root`.
        StageError: A tool is missing or failed.
    """
    if not (root / "notebooks").is_dir():
        raise UsageError(f"no notebooks in {root}; run this inside a clone of the repository")
    if fix:
        mend(root)
    found = list(code(root))
    for script in sorted((root / "notebooks").glob("*.py")):
        found += notebook(root, script)
    for path in documents(root):
        found += prose(root, path)
    found += spelling(root)
    return [*found, *results(root)]


def mend(root: Path) -> None:
    """What `vet(fix=True)` does before it looks."""
    _tool(root, "ruff", "check", "--fix", "--quiet", ".", found=1)
    _tool(root, "ruff", "format", "--quiet", *MODULES)
    update_twins(root)
    text = (root / "README.md").read_text(encoding="utf-8")
    for name, table in _tables(root).items():
        if report.table_in(text, name) is not None:
            report.put_table(root / "README.md", name, table)
    scripts = sorted((root / "notebooks").glob("*.py"))
    _tool(root, "nbstripout", "--keep-id", *(str(script.with_suffix(".ipynb")) for script in scripts))


def update_twins(root: Path) -> None:
    """Bring each .ipynb in line with its .py, which is the truth."""
    scripts = [str(path) for path in sorted((root / "notebooks").glob("*.py"))]
    # Not --sync: that takes the newer file, and an .ipynb that was only touched would undo an edit of its .py.
    _tool(root, "jupytext", "--quiet", "--update", "--to", "ipynb", *scripts)


# --- Code


def code(root: Path) -> Iterator[Finding]:
    """What ruff finds, and which modules it would format; notebooks are laid out by hand."""
    said = _tool(root, "ruff", "check", "--output-format", "json", ".", found=1)
    unformatted = _tool(root, "ruff", "format", "--check", "--output-format", "json", *MODULES, found=1)
    for each in [*json.loads(said or "[]"), *json.loads(unformatted or "[]")]:
        path = Path(each["filename"]).relative_to(root.resolve()).as_posix()
        yield Finding(path, each["location"]["row"], f"{each['code']}: {each['message']}")


def _tool(root: Path, module: str, *arguments: str, found: int = 0) -> str:
    """Run a tool of this Python; returns what it printed. `found`: the exit code that means findings, not failure."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=root, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode not in (0, found) or f"No module named {module}" in done.stderr:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise StageError(f"{module} failed: {said}; if it is missing, type: pip install -r requirements.txt")
    return done.stdout


# --- Notebooks


def notebook(root: Path, script: Path) -> Iterator[Finding]:
    """Twins, parameters and outputs of a notebook, and its prose; lines are those of the .py."""
    import jupytext
    import nbformat

    name = script.relative_to(root).as_posix()
    twin = script.with_suffix(".ipynb")
    ours = jupytext.read(script)
    yield from parameters(name, script)
    yield from prose(root, script)
    if not twin.exists():
        yield Finding(name, 1, "has no .ipynb; type: wm vet --fix")
        return
    theirs = nbformat.read(twin, as_version=4)
    if what := difference(ours, theirs):
        yield Finding(name, 1, f"{what}; type: wm vet --fix")
    for number in with_outputs(theirs):
        yield Finding(twin.relative_to(root).as_posix(), 1, f"cell {number} holds outputs; type: wm vet --fix")


def difference(script: Any, notebook: Any) -> str:
    """What differs between the twins, two nbformat notebooks, in words; "" where nothing does."""
    sides = [[(c.cell_type, c.source, c.metadata.get("tags", [])) for c in twin.cells] for twin in (script, notebook)]
    for number, (ours, theirs) in enumerate(zip(*sides, strict=False)):
        if ours != theirs:
            return f"cell {number}: {ours[1][:60]!r} {ours[2]} in the .py, {theirs[1][:60]!r} {theirs[2]} in the .ipynb"
    lengths = [len(side) for side in sides]
    return "" if lengths[0] == lengths[1] else f"{lengths[0]} cells in the .py, {lengths[1]} in the .ipynb"


def with_outputs(notebook: Any) -> list[int]:
    """Numbers of the cells that were executed and still show it."""
    cells = enumerate(notebook.cells)
    return [i for i, c in cells if c.cell_type == "code" and (c.outputs or c.execution_count is not None)]


def parameters(name: str, script: Path) -> Iterator[Finding]:
    """Whether there is one cell of parameters and nothing in it is derived."""
    lines = script.read_text(encoding="utf-8").splitlines()
    marks = [i for i, line in enumerate(lines) if line.startswith("# %%") and f'"{PARAMETERS}"' in line]
    if len(marks) != 1:
        yield Finding(name, 1, f"{len(marks)} cells are tagged '{PARAMETERS}', papermill wants one")
        return
    start = marks[0] + 1
    end = next((i for i in range(start, len(lines)) if lines[i].startswith("# %%")), len(lines))
    try:
        body = ast.parse("\n".join(lines[start:end])).body
    except SyntaxError as error:
        yield Finding(name, start + (error.lineno or 1), f"the cell of parameters is not Python: {error.msg}")
        return
    for statement in body:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Constant)):
            message = "the cell of parameters holds only `name: type = constant`"
            yield Finding(name, start + statement.lineno, message)


# --- Prose: Markdown files, and the Markdown cells of the .py


def documents(root: Path) -> list[Path]:
    """The Markdown files that people read."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def prose(root: Path, path: Path) -> Iterator[Finding]:
    """Headings, links and alternative texts of a Markdown file or of a notebook's .py."""
    lines = markdown(path)
    name = path.relative_to(root).as_posix()
    for check in (headings, links, alternative_texts):
        for number, message in check(lines, path.parent):
            yield Finding(name, number, message)


def markdown(path: Path) -> Lines:
    """The lines of Markdown outside of blocks of code; code within a line is left out, too."""
    found, is_markdown, fenced = [], path.suffix == ".md", False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if path.suffix == ".py":
            if line.startswith("# %%"):
                is_markdown, fenced = "[markdown]" in line, False
                continue
            line = line.removeprefix("#").removeprefix(" ")
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif is_markdown and not fenced:
            found.append((number, re.sub(r"`[^`]*`", "` `", line)))
    return found


def headings(lines: Lines, folder: Path) -> Iterator[tuple[int, str]]:
    """One title, at the top, and no level left out."""
    above = 0
    for number, line in lines:
        if match := re.match(r"(#+) +(\S.*)", line):
            level = len(match[1])
            if above and level == 1:
                yield number, f"'{match[2]}' is a second title"
            elif level > above + 1:
                yield number, f"heading '{match[2]}' is of level {level}, after one of level {above}"
            above = level
    if not above:
        yield 1, "has no heading"


def links(lines: Lines, folder: Path) -> Iterator[tuple[int, str]]:
    """Relative links, of pictures too, lead to a file."""
    for number, line in lines:
        for target in re.findall(r'\]\(<?([^)\s>]+)>?(?: "[^"]*")?\)|(?:src|href)="([^"]+)"', line):
            target = target[0] or target[1]
            if not re.match(r"[a-z][a-z0-9+.-]*:|#|//", target) and not (folder / target.partition("#")[0]).exists():
                yield number, f"link to {target}, which does not exist"


def alternative_texts(lines: Lines, folder: Path) -> Iterator[tuple[int, str]]:
    """Pictures are described for those who cannot see them."""
    for number, line in lines:
        for target in re.findall(r"!\[\s*\]\(([^)]*)\)", line):
            yield number, f"picture {target} has no alternative text"
        for tag in re.findall(r"<img\b[^>]*>", line):
            if not re.search(r"""\balt=("[^"]*[^"\s][^"]*"|'[^']*[^'\s][^']*')""", tag):
                yield number, "picture <img> has no alternative text"


def spelling(root: Path) -> Iterator[Finding]:
    """Misspelt words in documents, notebooks and the library, of a list of common ones (codespell)."""
    read = [*documents(root), *sorted((root / "notebooks").glob("*.py")), *sorted((root / "wm_lib").rglob("*.py"))]
    names = [path.relative_to(root).as_posix() for path in read]
    for line in _tool(root, "codespell_lib", *names, found=65).splitlines():
        if match := re.fullmatch(r"(?:\./)?(.+?):(\d+): (.+) ==> (.+)", line):
            yield Finding(match[1], int(match[2]), f"'{match[3]}' is misspelt: {match[4]}")


# --- Results


def results(root: Path) -> Iterator[Finding]:
    """Whether the tables in README.md are those of `assets/manifests`."""
    text = (root / "README.md").read_text(encoding="utf-8")
    for name, table in _tables(root).items():
        start, _ = report.marks(name)
        found = report.table_in(text, name)
        if found is None:
            yield Finding("README.md", 1, f"has no place for the table of the {name}, {start}")
        elif found != table:
            line = text.partition(start)[0].count("\n") + 1
            yield Finding("README.md", line, "the table is not that of assets/manifests; type: wm vet --fix")


def _tables(root: Path) -> dict[str, str]:
    """What belongs into README.md, by the names of their marks."""
    return {
        "results": report.results_table(report.find_manifests(root / "assets" / "manifests")),
        "comparison": compare.overview_of_shipped(root),
    }
