"""The exercises of notebooks 05 to 08: what is folded there is what is tested here, and mistakes have names."""

import ast
import importlib
import inspect
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import numpy as np
import pytest

from wm_lib.course.exercises import NOT_YET, RIGHT, controller, curriculum, dream, results
from wm_lib.journal import Journal, read_journal

FOLDER = Path(__file__).parent.parent / "notebooks"
MODULES = {"05_controller": controller, "06_dream": dream, "07_curriculum": curriculum, "08_results": results}


def cells_of(name):
    return jupytext.read(FOLDER / f"{name}.py").cells


def exercises(name):
    """By number: (name of the function, all cells from its heading to the next)."""
    found = {}
    for cell in cells_of(name):
        if cell.cell_type == "markdown" and cell.source.startswith("### Exercise "):
            found[re.match(r"### Exercise (\d\.\d) · .+", cell.source)[1]] = cells = []
        elif cell.cell_type == "markdown" and cell.source.startswith("## "):
            cells = []
        if found:
            cells.append(cell)
    return found


EXERCISES = [(name, number, cells) for name in MODULES for number, cells in exercises(name).items()]


@pytest.mark.parametrize(("name", "count"), zip(MODULES, (4, 4, 3, 4), strict=True))
def test_each_notebook_has_its_exercises_in_order(name, count):
    assert list(exercises(name)) == [f"{int(name[:2])}.{i + 1}" for i in range(count)]
    order = [re.search(r"minutes, (\w+)", cells[0].source)[1] for cells in exercises(name).values()]
    assert order == sorted(order, key=["easy", "medium", "hard"].index)


@pytest.mark.parametrize(("name", "number", "cells"), EXERCISES, ids=[number for _, number, _ in EXERCISES])
def test_an_exercise_begins_unattempted_and_ends_with_its_folded_solution(name, number, cells, capsys):
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert re.search(r"^\(\d+ minutes, (easy|medium|hard)\)$", text, re.MULTILINE)
    assert "<details><summary>Hint</summary>" in text
    folded = re.search(r"<details><summary>Solution</summary>\n\n```python\n(.+?)```", text, re.DOTALL)[1]
    stub, verdict = [cell.source for cell in cells if cell.cell_type == "code"]
    function = ast.parse(stub).body[-1].name
    assert folded == inspect.getsource(getattr(MODULES[name], function))

    code = [cell.source for cell in cells_of(name) if cell.cell_type == "code"]
    nodes = [node for source in code for node in ast.parse(source).body]
    namespace = {}
    exec("\n".join(ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)), namespace)
    for source in (stub, verdict, folded, verdict):
        exec(source, namespace)
    assert capsys.readouterr().out == f"{NOT_YET}\n{RIGHT}.\n"


@pytest.mark.parametrize("name", MODULES)
def test_something_goes_wrong_and_five_questions_are_asked(name):
    sections = [cell.source for cell in cells_of(name) if cell.source.startswith("## ")]
    assert any("goes wrong" in s.splitlines()[0] or "things go wrong" in s.splitlines()[0] for s in sections)
    asked = next(s for s in sections if re.match(r"## \d+\. Check yourself\n", s))
    assert re.findall(r"^(\d)\. \*\*", asked, re.MULTILINE) == list("12345")
    assert asked.count("<details><summary>Answer</summary>") == asked.count("</details>") == 5


def test_checks_need_no_torch():
    names = ", ".join(module.__name__ for module in MODULES.values())
    code = f"import sys, {names}; sys.exit('torch' in sys.modules or 'gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- Mistakes


def unstable(logits, uniform):
    bounds = np.cumsum(np.exp(logits) / np.exp(logits).sum())
    return int((uniform >= bounds[:-1]).sum())


def unnormalised(logits, uniform):
    return int((uniform >= np.cumsum(np.exp(logits))[:-1]).sum())


def gae(mask_delta=True, mask_sum=True, bootstrap=True):
    def advantages(reward, value, done, last_value, gamma, lam):
        found, following = np.zeros(len(reward)), 0.0
        after = np.append(value[1:], last_value if bootstrap else 0.0)
        for t in range(len(reward) - 1, -1, -1):
            live = 1.0 - done[t]
            delta = reward[t] + gamma * after[t] * (live if mask_delta else 1) - value[t]
            found[t] = following = delta + gamma * lam * following * (live if mask_sum else 1)
        return found

    return advantages


def on_and_on(z, h, act, imagine, horizon):
    total = 0.0
    for _ in range(horizon):
        z, reward, _, h = imagine(z, act(z, h), h)
        total += reward
    return total


def without_memory(z, h, act, imagine, horizon):
    total = 0.0
    for _ in range(horizon):
        z, reward, done, _ = imagine(z, act(z, h), h)
        total += reward
        if done:
            break
    return total


def last_reward_lost(z, h, act, imagine, horizon):
    total = 0.0
    for _ in range(horizon):
        z, reward, done, h = imagine(z, act(z, h), h)
        if done:
            break
        total += reward
    return total


def correlation(ranks):
    return lambda a, b: np.corrcoef(ranks(a), ranks(b))[0, 1]


def counts_failures(found, target, max_retries):
    if found[-1]["score"] is None:
        return "again"
    if found[-1]["score"] >= target:
        return "reached"
    return "again" if len(found) <= max_retries else "not_reached"


def watchdog(holds=True, grows=True, strict=True):
    def watch(looks, timeout, silence):
        spent = heard = 0.0
        size = 0
        for passed, written, held in looks:
            if held and holds:
                continue
            spent += passed
            if written != size and grows:
                heard, size = spent, written
            if spent > timeout or (not strict and spent >= timeout):
                return "timeout"
            if spent - heard > silence:
                return "silence"
        return "fine"

    return watch


def tolerant(data):
    found = []
    for line in data.split(b"\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def half(quantile, ddof=1, power=0.5):
    def interval(returns):
        width = quantile(len(returns)) * returns.std(ddof=ddof) / len(returns) ** power
        return returns.mean() - width, returns.mean() + width

    return interval


def t(n):
    return {2: 12.706205, 5: 2.776445}[n]


def decisions(parts, repeat, wanted=lambda part: part["world"] == "real" and part["stage"] != "evaluate"):
    return sum(p["count"] // (repeat if p["unit"] == "frames" else 1) for p in parts if wanted(p))


BUGS = [  # module, exercise, an attempt, words of what is said of it
    (controller, "num_params", lambda features, actions: features * actions, "the biases are missing"),
    (controller, "num_params", lambda features, actions: features * (actions + 1), "not to a feature"),
    (controller, "draw_action", lambda logits, u: int(logits.argmax()), "always the favourite"),
    (controller, "draw_action", unstable, "subtract the maximum"),
    (controller, "draw_action", lambda x, u: controller.draw_action(x, u) if np.ptp(x) < 99 else 3, "far above others"),
    (controller, "draw_action", lambda x, u: unstable(x - x.min(), u), "subtract the maximum, nothing else"),
    (controller, "draw_action", unnormalised, "not divided by their sum"),
    (controller, "error_of_difference", lambda a, b: np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a)), "its own"),
    (controller, "error_of_difference", lambda a, b: (a - b).std() / len(a) ** 0.5, "ddof=1"),
    (controller, "error_of_difference", lambda a, b: (a - b).std(ddof=1), "the root of n"),
    (controller, "advantages", gae(mask_delta=False, mask_sum=False), "done is forgotten"),
    (controller, "advantages", gae(mask_delta=False), "mask it in delta"),
    (controller, "advantages", gae(mask_sum=False), "into the next episode"),
    (controller, "advantages", gae(bootstrap=False), "last_value"),
    (dream, "cheats", lambda asleep, awake, a, b: asleep > awake, "its own rules"),
    (dream, "cheats", lambda asleep, awake, a, b: asleep > a, "reality is not asked"),
    (dream, "dream_return", on_and_on, "after its end"),
    (dream, "dream_return", without_memory, "the memory h"),
    (dream, "dream_return", last_reward_lost, "the last reward belongs"),
    (dream, "expected_length", lambda p: np.cumprod(1 - p).sum(), "the first is always made"),
    (dream, "expected_length", lambda p: float(len(p)), "threshold of 0.5"),
    (dream, "spearman", lambda a, b: np.corrcoef(a, b)[0, 1], "Pearson"),
    (dream, "spearman", correlation(lambda v: (v[:, None] > v).sum(1) + (v[:, None] == v).sum(1) / 2), "return None"),
    (dream, "spearman", correlation(lambda v: np.argsort(v, kind="stable")), "which rank"),
    (dream, "spearman", correlation(lambda v: np.argsort(np.argsort(v, kind="stable"))), "share a rank"),
    (curriculum, "next_try", counts_failures, "failed was no further round; for the scores [None, 0.0] with target 10"),
    (curriculum, "next_try", lambda r, target, n: r[-1]["score"] > target, "raised TypeError"),
    (curriculum, "next_try", lambda r, target, n: "reached" if r[-1]["score"] else "not_reached", "another go"),
    (curriculum, "read_events", lambda data: [json.loads(line) for line in data.splitlines()], "must not end"),
    (
        curriculum,
        "read_events",
        lambda data: [json.loads(line) for line in data.split(b"\n")[:-1] if line.endswith(b"}")],
        "a damaged line",
    ),
    (
        curriculum,
        "watch",
        lambda looks, *rest: curriculum.watch([(1.0, *look[1:]) for look in looks], *rest),
        "not looks",
    ),
    (curriculum, "next_try", lambda r, target, n: curriculum.next_try(r, 10, n), "has reached it"),
    (curriculum, "read_events", tolerant, "without its newline"),
    (curriculum, "watch", watchdog(holds=False), "held"),
    (curriculum, "watch", watchdog(grows=False), "a process that writes"),
    (curriculum, "watch", watchdog(strict=False), "only above it"),
    (results, "distinct_starts", lambda starts, seeds: min(starts, seeds), "come twice"),
    (results, "distinct_starts", lambda starts, seeds: starts * (1 - 1 / starts) ** seeds, "missed"),
    (results, "interval", half(lambda n: 1.96), "need t_quantile"),
    (results, "interval", half(t, ddof=0), "ddof=1"),
    (results, "interval", half(t, power=0), "about one episode"),
    (results, "real_decisions", lambda parts, n: decisions(parts, 1), "a frame is no decision"),
    (results, "real_decisions", lambda parts, n: decisions(parts, n, lambda p: p["stage"] != "evaluate"), "dreamt"),
    (
        results,
        "real_decisions",
        lambda parts, n: decisions(parts, n, lambda p: (p["world"], p["stage"]) == ("real", "controller")),
        "V and M learned",
    ),
    (results, "honest_score", lambda choosing, measuring: choosing.mean(1).max(), "the return that won"),
    (results, "honest_score", lambda choosing, measuring: measuring.mean(1).max(), "the very episodes that measure"),
]


@pytest.mark.parametrize(("module", "name", "attempt", "told"), BUGS)
def test_a_usual_mistake_is_called_by_its_name(module, name, attempt, told):
    verdict = getattr(module, f"check_{name}")(attempt)
    assert verdict.startswith("Not yet: ") and told in verdict and "\n" not in verdict


@pytest.mark.parametrize(("module", "name"), sorted({bug[:2] for bug in BUGS}, key=str))
@pytest.mark.parametrize("nonsense", [0, "word", [1, [2, 3]], {}, (), np.zeros((2, 2, 2)), float("nan"), object()])
def test_whatever_comes_back_a_check_says_something(module, name, nonsense):
    verdict = getattr(module, f"check_{name}")(lambda *args: nonsense)
    assert verdict.startswith("Not yet: ") and "\n" not in verdict


def test_every_exercise_has_a_mistake_with_a_name():
    functions = {ast.parse(cells[1].source).body[-1].name for _, _, cells in EXERCISES}
    assert {name for _, name, *_ in BUGS} == functions
    assert importlib.import_module("wm_lib.dreams").spearman is dream.spearman


# --- Solutions against something else


def test_the_journal_is_read_as_the_library_reads_it(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(3):
        journal.append("result", number=number)
    data = journal.path.read_bytes()
    for cut in range(len(data) + 1):
        journal.path.write_bytes(data[:cut])
        assert curriculum.read_events(data[:cut]) == read_journal(journal.path)


def test_the_expected_length_is_that_of_all_courses():
    p = np.array([0.2, 0.7, 0.1])
    total = 0.0
    for ends in itertools.product((True, False), repeat=3):
        chance = np.prod(np.where(ends, p, 1 - p))
        total += chance * (ends.index(True) + 1 if True in ends else 3)
    assert dream.expected_length(p) == pytest.approx(total)


def test_drawn_actions_come_as_often_as_the_softmax_says():
    logits = np.array([0.3, -1.0, 1.2])
    draws = [controller.draw_action(logits, u) for u in (np.arange(10_000) + 0.5) / 10_000]
    assert np.bincount(draws) / 10_000 == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-3)


def test_the_interval_is_the_librarys():
    from wm_lib.evaluation import summarise

    returns = [1.0, 4.0, 2.5, 9.0]
    assert results.interval(np.array(returns)) == pytest.approx(tuple(summarise(returns, range(4))["ci95"]))
