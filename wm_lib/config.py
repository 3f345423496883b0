"""Every number of a training, checked: presets in YAML for a budget, your own file on top.

Layers, each merged over the one before: `presets/laptop.yaml`, which names every key; the budget's own
preset, which says what is smaller or larger; your file. In each of them the top-level sections are for all
tasks, and `tasks: {pong: {vae: {...}}}` changes them for one task. `modes: {simulation: {...}}` holds sections and
`tasks` of the same shape for runs in that mode, merged after those for all modes.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError

from wm_lib.errors import UsageError
from wm_lib.settings import Config
from wm_lib.tasks import TASKS, get_task

BUDGETS = ("smoke", "laptop", "full")
MODES = ("full", "gym_only", "simulation")  # torch and Gymnasium; Gymnasium alone; neither
_PRESETS = Path(__file__).parent / "presets"
_Sections = dict[str, dict[str, Any]]
_Layer = list[tuple[str | None, str | None, _Sections]]  # (mode, task, sections): None for all of them


def resolve_budget(budget: str = "auto") -> str:
    """Turn a budget into one of `BUDGETS`; "auto" means $WM_BUDGET, and without that laptop.

    Raises:
        UsageError: It is none of them.
    """
    origin = "budget"
    if budget == "auto":
        origin, budget = "$WM_BUDGET", os.environ.get("WM_BUDGET", "").strip() or "auto"
    if budget == "auto":
        return "laptop"
    if budget not in BUDGETS:
        raise UsageError(f"unknown {origin} '{budget}'; {_hint(budget, ('auto', *BUDGETS))}")
    return budget


def load_config(
    budget: str = "auto", task: str | None = None, file: str | Path | None = None, mode: str = "full"
) -> Config:
    """Read the presets of a budget and your file on top, with one task's changes (task=None: with none).

    Raises:
        UsageError: The file cannot be read, or a key or value is wrong: one line with the key, the value and
            the nearest valid key or the allowed range. The changes for all other tasks and modes are checked too.
    """
    budget = resolve_budget(budget)
    task = None if task is None else get_task(task).name
    paths = [_PRESETS / "laptop.yaml"]
    if budget != "laptop":
        paths.append(_PRESETS / f"{budget}.yaml")
    if file is not None:
        paths.append(Path(file))
    layers = [_read_layer(path) for path in paths]
    name = paths[-1].name
    for other_mode, other_task, block in layers[-1]:
        prefix = (f"modes.{other_mode}." if other_mode else "") + (f"tasks.{other_task}." if other_task else "")
        _build(_merge(layers, other_task, other_mode or "full"), name, prefix, block)
    return _build(_merge(layers, task, mode), name)


class _Loader(yaml.SafeLoader):
    """YAML with 1e-3 and 1e6 as numbers; YAML 1.1 wants a point in them and reads text otherwise."""


def _scientific(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    value = float(node.value)
    return int(value) if value.is_integer() else value


_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("!scientific", _SCIENTIFIC, list("-+0123456789"))
_Loader.add_constructor("!scientific", _scientific)


def _read_layer(path: Path) -> _Layer:
    """The blocks of a file, in the order in which they are merged: for all, for a task, for a mode, for both."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or "bad input"
        raise UsageError(f"{path}{line} is not YAML: {problem}") from error
    sections = _keys(values, path.name, "the whole file")
    modes = _keys(sections.pop("modes", None), path.name, "modes")
    layer = _blocks(sections, path.name, None)
    for mode, content in modes.items():
        if mode not in MODES:
            raise UsageError(f"{path.name}: modes.{mode}: unknown mode; {_hint(mode, MODES)}")
        layer += _blocks(_keys(content, path.name, f"modes.{mode}"), path.name, mode)
    return layer


def _blocks(sections: dict[str, Any], file: str, mode: str | None) -> _Layer:
    """Sections for all tasks, then those for one."""
    prefix = f"modes.{mode}." if mode else ""
    tasks = _keys(sections.pop("tasks", None), file, f"{prefix}tasks")
    layer: _Layer = [(mode, None, _sections(sections, file, prefix))]
    for name, content in tasks.items():
        where = f"{prefix}tasks.{name}"
        if name not in TASKS:
            raise UsageError(f"{file}: {where}: unknown task; {_hint(name, TASKS)}")
        layer.append((mode, name, _sections(_keys(content, file, where), file, f"{where}.")))
    return layer


def _sections(values: dict[str, Any], file: str, prefix: str = "") -> _Sections:
    for key, value in values.items():
        if key not in Config.model_fields:
            found = f"{prefix}{key}: unknown key, found with {_show(value)}"
            raise UsageError(f"{file}: {found}; {_nearest_key((key,))}")
    return {key: _keys(value, file, prefix + key) for key, value in values.items()}


def _keys(values: Any, file: str, key: str) -> dict[str, Any]:
    if values is None:  # `vae:` with nothing under it
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{file}: {key}: needs keys with values under it, found {_show(values)}")
    return {str(name): value for name, value in values.items()}


def _merge(layers: Iterable[_Layer], task: str | None, mode: str) -> _Sections:
    merged: _Sections = {}
    for layer in layers:
        for for_mode, for_task, sections in layer:
            if for_mode in (None, mode) and for_task in (None, task):
                for name, content in sections.items():
                    merged[name] = merged.get(name, {}) | content
    return merged


def _build(values: _Sections, file: str, prefix: str = "", block: Iterable[str] = ()) -> Config:
    """Validate; a wrong key in one of the sections of `block` is named with the prefix."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first, *others = error.errors()
        where = prefix if first["loc"] and first["loc"][0] in block else ""
        more = f" (and {len(others)} more)" if others else ""
        raise UsageError(f"{file}: {where}{_explain(first)}{more}") from None


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors: key, value, and what would be right."""
    loc, kind, value = error["loc"], error["type"], _show(error["input"])
    if not loc:
        return str(error["ctx"]["error"])
    key = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        return f"{key}: unknown key, found with {value}; {_nearest_key(loc)}"
    if kind == "value_error":
        return f"{key}: found {value}; {error['ctx']['error']}"
    field = Config.model_fields[loc[0]].annotation.model_fields[loc[1]]
    if get_origin(field.annotation) is Literal:
        return f"{key}: {value} is not a choice; {_hint(str(error['input']), get_args(field.annotation))}"
    if get_origin(field.annotation) is list and len(loc) == 2:
        return f"{key}: needs a list, found {value}"
    if get_origin(field.annotation) is dict and len(loc) == 2:
        return f"{key}: needs keys with values under it, found {value}"
    base = get_args(field.annotation)[-1] if get_args(field.annotation) else field.annotation
    return f"{key}: needs {_KINDS[base]}{_range(field.metadata)}, found {value}"


def _show(value: Any) -> str:
    """A value as it would stand in YAML, on one line and not too long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _range(metadata: Iterable[Any]) -> str:
    bounds = {}
    for item in metadata:
        for name in ("gt", "ge", "le"):
            if hasattr(item, name):
                bounds[name] = getattr(item, name)
    if "le" not in bounds:
        return ""
    low = f" above {bounds['gt']} and at most" if "gt" in bounds else f" from {bounds['ge']} to"
    return f"{low} {bounds['le']}"


def _nearest_key(loc: tuple[str, ...]) -> str:
    """The nearest key of the same section, else a key of that name in another section, else all keys."""
    *parents, name = loc
    fields = Config.model_fields
    if parents:
        fields = fields[parents[0]].annotation.model_fields
    if not difflib.get_close_matches(name, fields, 1):
        for section, field in Config.model_fields.items():
            if name in field.annotation.model_fields:
                return f"did you mean {section}.{name}?"
    return _hint(name, fields, "".join(f"{parent}." for parent in parents))


def _hint(name: str, options: Iterable[str], prefix: str = "") -> str:
    options = list(options)
    near = difflib.get_close_matches(name, options, 1)
    listed = f"choose one of {', '.join(options)}"
    return f"did you mean {prefix}{near[0]}? ({listed})" if near else listed
