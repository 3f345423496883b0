"""What installers are promised: versions that agree, a light import, nothing unsafe or heavy in git."""

import ast
import fnmatch
import json
import pickle
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import wm_lib

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
HEAVY = {"torch", "gymnasium", "envpool", "ale_py", "stable_baselines3"}
LIGHT_MODULES = (
    "errors seeding tasks config checkpoints events rollouts evaluation pipeline cli "
    "control.controller control.agent control.evolution efficiency compare"
).split()
MAX_BYTES = 20 * 2**20


def by_name(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return by_name([line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()])


def ranges() -> dict[str, Requirement]:
    extras = [lines for name, lines in PROJECT["optional-dependencies"].items() if name != "all"]
    return by_name(sum(extras, PROJECT["dependencies"]))


def git(*arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", *arguments]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: a downloaded archive has no git to ask")


def repository_files() -> list[Path]:
    """Files that are in git or would be added by `git add .`."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_requirements_and_pyproject_name_the_same_packages():
    assert sorted(pins()) == sorted(ranges())


def test_every_pin_is_exact_and_lies_in_its_range():
    for name, pin in pins().items():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, f"{pin} is not an exact version"
        assert "+" not in specifier.version, f"{pin} names a local build, which no public index has"
        assert ranges()[name].specifier.contains(specifier.version), f"{pin} is outside {ranges()[name]}"


def test_every_pin_says_which_chapter_needs_it():
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or re.search(r"==\S+ +# \S", line), line


def test_the_base_install_is_small():
    base = set(by_name(PROJECT["dependencies"]))
    assert base == {"numpy", "cma", "matplotlib", "pyyaml", "pydantic", "safetensors", "tqdm"}


def test_extra_all_is_the_other_extras():
    extras = PROJECT["optional-dependencies"]
    (everything,) = [Requirement(line) for line in extras["all"]]
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(extras) - {"all"}


def test_environment_yml_is_python_and_the_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = environment["dependencies"]
    assert SpecifierSet(python.removeprefix("python ")) == SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip"
    assert packages == {"pip": ["-r requirements.txt"]}


def test_pre_commit_hooks_use_the_pinned_versions():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff", "jupytext", "nbstripout"}
    for hook in hooks:
        assert [Requirement(line) for line in hook["additional_dependencies"]] == [pins()[hook["id"]]]


def test_version_has_one_source():
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", wm_lib.__version__)


def test_every_import_is_declared():
    """No module may lean on a package that only happens to be installed because another one needs it."""
    distributions = packages_distributions()
    declared = set(ranges())
    own = {"wm_lib", "tests"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    undeclared = set()
    for folder in ("wm_lib", "tests", "notebooks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                else:
                    continue
                for top in {name.split(".")[0] for name in names} - own - sys.stdlib_module_names:
                    providers = {canonicalize_name(name) for name in distributions.get(top, [top])}
                    if not providers & declared:
                        undeclared.add(f"{path.relative_to(ROOT)} imports {top}")
    assert not undeclared, "add to pyproject.toml and requirements.txt: " + ", ".join(sorted(undeclared))


def test_the_light_modules_import_nothing_heavy_and_wm_has_an_entry():
    assert PROJECT["scripts"] == {"wm": "wm_lib.cli:main"}
    program = f"""
import importlib, json, sys
heavy, brought = {sorted(HEAVY)!r}, {{}}
for name in {["wm_lib", *(f"wm_lib.{module}" for module in LIGHT_MODULES)]!r}:
    importlib.import_module(name)
    brought[name] = [package for package in heavy if package in sys.modules]
print(json.dumps([brought, callable(sys.modules["wm_lib.cli"].main)]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    brought, main_is_callable = json.loads(done.stdout)
    assert {name: packages for name, packages in brought.items() if packages} == {}
    assert main_is_callable


def test_everything_in_the_package_is_installed_with_it():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["wm_lib"]
    package = ROOT / "wm_lib"
    for path in repository_files():
        if not path.is_relative_to(package):
            continue
        name = path.relative_to(package).as_posix()
        if path.suffix == ".py":
            assert (path.parent / "__init__.py").exists(), f"{name} is in no package"
        else:
            matched = any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
            assert matched, f"no package-data pattern in pyproject.toml for {name}"


def is_pickle(path: Path) -> bool:
    """By its name, by how a pickle of protocol 2 to 5 begins, or, as of torch.save, by what a zip holds."""
    pickles = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")
    if path.suffix.lower() in pickles:
        return True
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(pickles) for name in archive.namelist())
    return False


def test_no_pickles():
    assert [str(path) for path in repository_files() if is_pickle(path)] == []


def test_pickles_are_recognised(tmp_path):
    (tmp_path / "weights.bin").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "plain.bin").write_bytes(b"\x89PNG")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert is_pickle(tmp_path / "weights.bin") and is_pickle(tmp_path / "model.zip")
    assert not is_pickle(tmp_path / "plain.bin")


def test_notebooks_in_git_carry_no_outputs():
    """As staged or committed: whoever is working through a notebook has outputs in theirs."""
    for name in git("ls-files", "-z", "--cached", "*.ipynb").split("\0")[:-1]:
        cells = json.loads(git("show", f":{name}"))["cells"]
        ran = [cell for cell in cells if cell.get("outputs") or cell.get("execution_count") is not None]
        assert not ran, f"{name} holds outputs: .venv/bin/nbstripout --keep-id {name}, then add it again"


def test_no_large_files():
    assert [str(path) for path in repository_files() if path.stat().st_size > MAX_BYTES] == []
