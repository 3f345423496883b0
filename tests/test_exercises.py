"""The exercises of the notebooks: what stands there is what is tested, and checks know right from wrong."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import jupytext
import numpy as np
import pytest
import torch

from wm_lib.course.exercises import NOT_YET, RIGHT, check, tried
from wm_lib.course.exercises.diagnostics import choose_mode as mode_of
from wm_lib.course.exercises.diagnostics import judge
from wm_lib.course.exercises.start import play
from wm_lib.models import mdn_rnn as library_m

FOLDER = Path(__file__).parent.parent / "notebooks"
MODULES = {  # notebook -> the module of its exercises, and how many there are at least
    "00_start_here": ("start", 2),
    "01_diagnostics": ("diagnostics", 3),
    "02_data_collection": ("data", 3),
    "03_vae": ("vae", 3),
    "04_mdn_rnn": ("mdn_rnn", 3),
}
HEADING = re.compile(r"^### Exercise (\d)\.(\d) · (.+)$", re.MULTILINE)


def sections(name):
    """The exercises of a notebook: (heading, their cells)."""
    found = []
    for cell in jupytext.read(FOLDER / f"{name}.py").cells:
        if cell.cell_type == "markdown" and (match := HEADING.search(cell.source)):
            found.append((match, [cell]))
        elif found and cell.cell_type == "markdown" and re.search("^## ", cell.source, re.MULTILINE):
            break
        elif found:
            found[-1][1].append(cell)
    return found


def imports(name):
    """A namespace with all that a notebook imports."""
    cells = [cell.source for cell in jupytext.read(FOLDER / f"{name}.py").cells if cell.cell_type == "code"]
    lines = [ast.unparse(n) for c in cells for n in ast.parse(c).body if isinstance(n, ast.Import | ast.ImportFrom)]
    namespace = {}
    exec("\n".join(lines), namespace)
    return namespace


EXERCISES = [(name, int(m[2]), cells) for name in MODULES for m, cells in sections(name)]


@pytest.mark.parametrize("name", MODULES)
def test_exercises_are_counted_and_enough(name):
    headings = [(int(match[1]), int(match[2])) for match, _ in sections(name)]
    assert headings == [(int(name[:2]), i + 1) for i in range(len(headings))]
    assert len(headings) >= MODULES[name][1]


@pytest.mark.parametrize(("name", "number", "cells"), EXERCISES, ids=[f"{n[:2]}.{i}" for n, i, _ in EXERCISES])
def test_an_exercise_is_whole_and_its_folded_solution_is_the_tested_one(name, number, cells, capsys):
    """Minutes, difficulty, hint, stub, verdict; and whoever pastes the solution over the stub is told it is right."""
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert re.search(r"\(\d+ minutes, (easy|medium|hard)\)", text)
    assert "<details><summary>Hint</summary>" in text
    folded = re.search(r"<details><summary>Solution</summary>\n\n```python\n(.+?)```\n\n.*?</details>", text, re.DOTALL)
    stub, verdict = [cell.source for cell in cells if cell.cell_type == "code"]
    function = ast.parse(stub).body[-1]
    assert ast.unparse(function.body[-1]) == "return None"
    module = importlib.import_module(f"wm_lib.course.exercises.{MODULES[name][0]}")
    solution = getattr(module, function.name)
    assert folded[1] == inspect.getsource(solution)
    assert getattr(module, f"check_{function.name}")(solution) == f"{RIGHT}."

    namespace = imports(name)
    exec(stub, namespace)
    exec(verdict, namespace)
    assert capsys.readouterr().out == f"{NOT_YET}\n"
    exec(folded[1], namespace)
    exec(verdict, namespace)
    assert capsys.readouterr().out == f"{RIGHT}.\n"


@pytest.mark.parametrize("name", MODULES)
def test_five_questions_have_folded_answers(name):
    cells = [cell.source for cell in jupytext.read(FOLDER / f"{name}.py").cells if cell.cell_type == "markdown"]
    text = next(cell for cell in cells if re.search(r"^## \d+\. Check yourself$", cell, re.MULTILINE))
    assert re.findall(r"^(\d)\. \*\*", text, re.MULTILINE) == list("12345")
    assert text.count("<details><summary>Answer</summary>") == text.count("</details>") == 5


def verdict_on(module, name, attempt):
    return getattr(importlib.import_module(f"wm_lib.course.exercises.{module}"), f"check_{name}")(attempt)


def test_an_attempt_that_raises_is_told_so_in_one_line_and_cannot_change_the_case():
    case = np.zeros(3)

    @check
    def check_it(attempt):
        assert tried(attempt, case) == 1

    def spoils(array):
        array += 1
        return 1

    def raises(array):
        raise KeyError("two\nlines")

    assert check_it(spoils) == f"{RIGHT}." and not case.any()
    assert check_it(raises) == "Not yet: it raised KeyError: 'two\\nlines'"
    assert check_it(lambda array: None) == NOT_YET
    assert check_it(lambda: 1).startswith("Not yet: it raised TypeError")


def blend(log_pi, mu, log_sigma):
    """Gaussians of a mixture, by torch itself."""
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=log_pi), torch.distributions.Normal(mu, log_sigma.exp())
    )


def foreground(frames, scenery, weight):
    """As the library's, without what it knows of uint8."""
    different = ((frames - scenery).amax(3) > 25).float()[:, None]
    weights = 1 + torch.nn.functional.max_pool2d(different, 7, 1, 3).permute(0, 2, 3, 1) * (weight - 1)
    return weights / weights.mean((1, 2, 3), keepdim=True)


def pointing(score):
    """Places by a meshgrid and one product, not by rows and columns."""
    y, x = torch.meshgrid((torch.arange(64) + 0.5) / 32 - 1, (torch.arange(64) + 0.5) / 32 - 1, indexing="ij")
    weight = torch.softmax(score.reshape(len(score), 4096, -1), dim=1)
    return weight.mT @ torch.stack([x, y], -1).reshape(4096, 2)


def remembers_too_early(see, remember, choose, world, frame, memory, num_decisions):
    actions = []
    for _ in range(num_decisions):
        z = see(frame)
        memory = remember(z, actions[-1] if actions else 0, memory)
        actions.append(choose(z, memory))
        frame = world(actions[-1])
    return actions


def forgets(see, remember, choose, world, frame, memory, num_decisions):
    actions = []
    for _ in range(num_decisions):
        actions.append(choose(see(frame), memory))
        remember(see(frame), actions[-1], memory)
        frame = world(actions[-1])
    return actions


def remembers_the_next(see, remember, choose, world, frame, memory, num_decisions):
    actions = []
    for _ in range(num_decisions):
        actions.append(choose(see(frame), memory))
        frame = world(actions[-1])
        memory = remember(see(frame), actions[-1], memory)
    return actions


def begins_anew(see, remember, choose, world, frame, memory, num_decisions):
    actions, first = [], memory
    for _ in range(num_decisions):
        z = see(frame)
        actions.append(choose(z, memory))
        memory = remember(z, actions[-1], first)
        frame = world(actions[-1])
    return actions


def every_tenth_frame(num_sequences, length):
    index = np.arange(num_sequences * length)
    return index[index % 10 != 3], index[index % 10 == 3]


def as_if_time_came_first(num_sequences, length):
    index = np.arange(num_sequences * length)
    held = index % num_sequences == num_sequences - 1
    return index[~held], index[held]


BUGS = [  # module, exercise, an attempt, words of what is said of it
    ("start", "real_decisions", lambda rows: sum(r["games"] * r["decisions"] for r in rows), "dreams are counted too"),
    (
        "start",
        "real_decisions",
        lambda rows: sum(r["decisions"] for r in rows if r["world"] == "real"),
        "the games are",
    ),
    ("start", "play", remembers_too_early, "the memory is updated before C chooses"),
    ("start", "play", forgets, "the memory is not kept"),
    ("start", "play", remembers_the_next, "M is given the next z"),
    ("start", "play", begins_anew, "it goes on from the one that it returned last"),
    ("start", "play", lambda *args: np.array(play(*args)), "the list of the actions is not what is returned"),
    ("diagnostics", "decisions_per_second", lambda s, n, k: n * k / np.mean(s), "the mean of the timings"),
    ("diagnostics", "decisions_per_second", lambda s, n, k: k / min(s), "the games are forgotten"),
    (
        "diagnostics",
        "judge",
        lambda code, s, limit: "crash" if code else "hang" if s > limit else judge(0, s, limit),
        "no hang",
    ),
    (
        "diagnostics",
        "judge",
        lambda code, s, limit: judge(None if code is None else max(code, 0), s, limit),
        "a signal",
    ),
    ("diagnostics", "judge", lambda code, s, limit: judge(code or 0, s, limit), "None is not 0"),
    (
        "diagnostics",
        "choose_mode",
        lambda s, world, brain: mode_of({k: v.replace("slow", "missing") for k, v in s.items()}, world, brain),
        "what is slow works",
    ),
    (
        "diagnostics",
        "choose_mode",
        lambda s, world, brain: mode_of({k: v.replace("hang", "ok") for k, v in s.items()}, world, brain),
        "not only be installed",
    ),
    (
        "diagnostics",
        "choose_mode",
        lambda s, world, brain: "full" if set(s.values()) <= {"ok", "slow"} else "gym_only",
        "nothing to play with",
    ),
    ("data", "is_blank", lambda f: f.max((1, 2, 3)) <= 10, "those of another single colour are missed"),
    ("data", "is_blank", lambda f: f.max((1, 2, 3)) - f.min((1, 2, 3)) <= 10, "look at each colour for itself"),
    ("data", "is_blank", lambda f: f.std((1, 2)).max(1) < 10, "a ball of one pixel"),
    ("data", "same_after", lambda a, first, k: (a[:, k:] == a[:, :-k]).mean(), "across the border"),
    ("data", "same_after", lambda a, first, k: (a[k:] == a[:-k]).mean(), "time is the second axis"),
    ("data", "same_after", lambda a, first, k: (a[:, k:] == a[:, :-k])[~first[:, k:]].mean(), "a border between"),
    ("data", "hold_out", every_tenth_frame, "it leaks"),
    (
        "data",
        "hold_out",
        lambda n, length: (np.arange(n * length) >= length, np.arange(n * length) < length),
        "are masks",
    ),
    ("data", "hold_out", as_if_time_came_first, "sequence and time are swapped"),
    ("data", "hold_out", lambda n, length: (np.arange(n - 1), np.arange(n - 1, n)), "these are sequences"),
    ("vae", "reparameterise", lambda mu, s, noise: mu + s * noise, "logarithm of σ"),
    ("vae", "reparameterise", lambda mu, s, noise: mu + (0.5 * s).exp() * noise, "logarithm of the variance"),
    ("vae", "reparameterise", lambda mu, s, noise: mu + s.exp() * torch.randn_like(mu), "the noise that is given"),
    (
        "vae",
        "reparameterise",
        lambda mu, s, noise: mu + s.detach().exp() * noise,
        "no gradient comes back to log_sigma",
    ),
    ("vae", "kl_divergence", lambda mu, s: mu**2 + (2 * s).exp() - 1 - 2 * s, "the ½ is missing"),
    ("vae", "kl_divergence", lambda mu, s: (0.5 * (mu**2 + (2 * s).exp() - 1) - s).sum(1), "summed over z"),
    ("vae", "kl_divergence", lambda mu, s: 0.5 * (mu**2 + s**2 - 1) - s.log(), "taken for σ"),
    ("vae", "kl_divergence", lambda mu, s: 0.5 * (mu**2 + s.exp() - 1 - s), "the logarithm of the variance"),
    ("vae", "kl_divergence", lambda mu, s: mu, "the shape is right and the numbers are not"),
    ("vae", "active_units", lambda mu: (mu.var(axis=-1) > 0.01).sum(), "variance is taken over z"),
    ("vae", "active_units", lambda mu: (mu.std(axis=0) > 0.01).sum(), "take the variance"),
    ("vae", "active_units", lambda mu: (mu.var(axis=0) > 0.01).sum(), "flatten all but the last axis"),
    ("vae", "foreground_weights", foreground, "uint8 has no numbers below 0"),
    ("vae", "foreground_weights", lambda f, s, w: foreground(f.int(), s.int(), w), "what is darker differs too"),
    ("vae", "soft_argmax", lambda score: pointing(score).flip(2), "x and y are swapped"),
    ("vae", "soft_argmax", lambda score: pointing(1e4 * score), "brightest pixel alone"),
    ("vae", "soft_argmax", lambda score: pointing(score).mT, "the order is"),
    ("vae", "soft_argmax", lambda score: 32 * pointing(score) + 31.5, "in pixels"),
    ("vae", "soft_argmax", lambda score: pointing(score.detach()), "no gradient comes back"),
    ("mdn_rnn", "line_up", lambda z, a, done: (z[:-1], a[1:], z[1:], ~done[:-1]), "the action of the next row"),
    ("mdn_rnn", "line_up", lambda z, a, done: (z[:-1], np.roll(a, 1)[:-1], z[1:], ~done[:-1]), "one row late"),
    ("mdn_rnn", "line_up", lambda z, a, done: (z[:-1], a[:-1], z[1:], done[:-1] > 1), "for `known`"),
    ("mdn_rnn", "line_up", lambda z, a, done: (z[:-1], a[:-1], z[1:], done[:-1] < 2), "the end of an episode is forg"),
    ("mdn_rnn", "line_up", lambda z, a, done: (z[:-1], a[:-1], z[1:], ~done[1:]), "`known` is one row too late"),
    ("mdn_rnn", "line_up", lambda z, a, done: (z, a, z, ~done), "the last one has no next z"),
    ("mdn_rnn", "at_temperature", lambda p, s, t: (np.exp(p) / t, np.exp(s)), "it should divide their logarithms"),
    ("mdn_rnn", "at_temperature", lambda p, s, t: (library_weights(p / t), np.exp(s) * t), "σ gets its root"),
    ("mdn_rnn", "at_temperature", lambda p, s, t: (library_weights(p / t), np.exp(s * t**0.5)), "applied to log σ"),
    ("mdn_rnn", "at_temperature", lambda p, s, t: (careless(p / t), np.exp(s) * t**0.5), "subtract the maximum first"),
    ("mdn_rnn", "mdn_nll", lambda p, m, s, z: -blend(p, m, s).log_prob(z), "sum over the dimensions of z is missing"),
    ("mdn_rnn", "mdn_nll", lambda p, m, s, z: -blend(p, m, s).log_prob(z).mean(-1), "sum over its dimensions"),
    (
        "mdn_rnn",
        "mdn_nll",
        lambda p, m, s, z: -blend(0 * p, m, s).log_prob(z).sum(-1) - 4 * np.log(5),
        "log_pi is miss",
    ),
    ("mdn_rnn", "mdn_nll", lambda p, m, s, z: careless_nll(p, m, s, z), "use logsumexp of their logarithms"),
    (
        "mdn_rnn",
        "mdn_nll",
        lambda p, m, s, z: -(p.exp() * torch.distributions.Normal(m, s.exp()).log_prob(z[..., None])).sum((-1, -2)),
        "the mean of the logarithms",
    ),
]


def library_weights(logits):
    return torch.softmax(torch.from_numpy(logits), -1).numpy()


def careless(logits):
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


def careless_nll(log_pi, mu, log_sigma, z):
    """The formula as it stands in the book."""
    density = torch.distributions.Normal(mu, log_sigma.exp()).log_prob(z[..., None]).exp()
    return -(log_pi.exp() * density).sum(-1).log().sum(-1)


@pytest.mark.parametrize(("module", "name", "attempt", "told"), BUGS)
def test_a_usual_mistake_is_called_by_its_name(module, name, attempt, told):
    verdict = verdict_on(module, name, attempt)
    assert verdict.startswith("Not yet: ") and told in verdict and "\n" not in verdict


@pytest.mark.parametrize(("module", "name"), sorted({bug[:2] for bug in BUGS}))
@pytest.mark.parametrize("nonsense", [0, "word", [1, [2, 3]], {}, (), np.zeros((2, 2, 2)), float("nan"), object()])
def test_whatever_comes_back_a_check_says_something(module, name, nonsense):
    verdict = verdict_on(module, name, lambda *args: nonsense)
    assert verdict.startswith("Not yet: ") and "\n" not in verdict


def test_at_temperature_is_how_the_library_draws():
    """Shares and widths of many draws of `sample_mdn`, from components that lie far apart."""
    from wm_lib.course.exercises.mdn_rnn import at_temperature

    log_pi = torch.log_softmax(torch.tensor([0.0, 1.0, -0.5]), 0)
    log_sigma, mu = torch.tensor([0.1, -0.4, 0.3]), torch.tensor([-100.0, 0.0, 100.0])
    for temperature in (0.5, 2.0):
        shaped = [part.expand(40_000, 3) for part in (log_pi, mu, log_sigma)]
        draws = library_m.sample_mdn(*shaped, temperature, torch.Generator().manual_seed(0)).numpy()
        pi, sigma = at_temperature(log_pi.numpy(), log_sigma.numpy(), temperature)
        component = np.digitize(draws, [-50, 50])
        assert np.bincount(component) / len(draws) == pytest.approx(pi, abs=0.01)
        assert [draws[component == k].std() for k in range(3)] == pytest.approx(sigma, rel=0.03)
