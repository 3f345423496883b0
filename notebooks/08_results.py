# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 Results
# **What did it reach, and how do we know?**
#
# *Minutes on two cores: smoke 0.1, laptop 0.2.*
#
# ## Goals
# - Read the evidence: for every score there is a *manifest* that says how it came about.
# - Know the protocol well enough to object to it.
# - Watch the agents whose scores these are.
#
# ## Before you start
# [07 Curriculum](07_curriculum.ipynb) writes the manifests. This notebook trains nothing; where some are missing it shows what there is.

# %% [markdown]
# ## Parameters
# Change them here in JupyterLab, or from outside: papermill takes `-p task pong`, `wm course --task pong` sets it for all notebooks.

# %% tags=["parameters"]
task: str = "car-racing"  # pong, lunar-lander, breakout or car-racing
budget: str = "auto"  # smoke, laptop or full; auto takes WM_BUDGET, else laptop
seed: int = 0  # of everything random
run_dir: str = "auto"  # folder of the run; auto is runs/BUDGET
# %% [markdown]
# ## Setup

# %%
from typing import Any

import numpy as np

from wm_lib import efficiency
from wm_lib.compare import find_result, overview_of_shipped
from wm_lib.control.agent import Agent
from wm_lib.course import films, plots, step_through, widgets
from wm_lib.course.exercises.results import (
    check_distinct_starts,
    check_honest_score,
    check_interval,
    check_real_decisions,
)
from wm_lib.errors import StageError
from wm_lib.evaluation import t_quantile  # noqa: F401  (for exercise 8.2)
from wm_lib.folders import project_root
from wm_lib.pipeline import Pipeline
from wm_lib.report import find_manifests, published, results_table
from wm_lib.report import interval as as_text
from wm_lib.worlds.envs import make_env

run = Pipeline.open(task, budget, run_dir, seed)
names = run.config.curriculum.stages
print(f"looking in {run.directory.parent} and {project_root() / 'assets' / 'manifests'}")

# %% [markdown]
# ## 1. The table
# **Predict.** From what you have seen so far: which interval will be the widest, as a share of the way from random play to the target?

# %%
manifests = {}
for source, folder in {"this run": run.directory.parent, "shipped": project_root() / "assets" / "manifests"}.items():
    try:
        manifests[source] = find_manifests(folder)
    except StageError as error:
        manifests[source] = []
        print(f"left out: {error}")
    print(f"{source}:\n{results_table(manifests[source])}\n" if manifests[source] else f"{source}: no manifests\n")
for m in manifests["this run"] or manifests["shipped"]:
    (low, high), way = m["score"]["ci95"], m["target"] - m["random_score"]["mean"]
    print(f"{m['task']}: an interval of " + ("one episode" if low is None else f"{100 * (high - low) / way:.0f} % of the way"))
own = manifests["this run"]
missing = [name for name in names if name not in {m["task"] for m in own}]
if missing:
    print(f"not in this run yet: {', '.join(missing)}; notebook 07 makes them, or: wm train --task {missing[0]} --component all")

# %%
plots.scores(own or manifests["shipped"])

# %% [markdown]
# **Explain.** A score of few episodes is a rough guess, and its interval says so. A finished one takes 100; the column *episodes* says
# how many these took. A run at `smoke` has
# learned nothing; its numbers are here to show that the table works.

# %% [markdown]
# ## 2. How it is measured
# - **Where.** In Gymnasium's own environment, not on the fast path that training used, and in float32.
# - **What.** Whole episodes, raw rewards: nothing clipped, scaled or shaped, though while C learns they may be. The seeds are fixed
#   and follow one another.
# - **Atari.** Each decision holds for four frames, and up to 30 idle ones start a game. Losing a life does not end it
#   (while C learns Breakout it does: the next ball comes at once, so there would be little to learn from a miss). FIRE is pressed
#   by the environment and counts as a decision. Actions are *sampled*, with a generator seeded per episode, since a fixed agent
#   could learn the few possible starts by heart.
# - **LunarLander.** Actions are sampled too. The ship's exhaust is not drawn, since the fast path has none; it touches nothing.
# - **CarRacing.** Actions are sampled here as well. The digits in the corner of the picture, the return so far, are not shown.
# - **Cost.** *Real steps* are all decisions that learning took in the real environment, the data for V and M included, the
#   measuring not.
# - **Never** is a point on a learning curve called a score.
#
# **Predict.** If you measured again with other seeds, would the new mean lie in the old interval?

# %%
for m in own or manifests["shipped"]:
    s = m["score"]
    print(f"{m['task']:>12}: seeds {s['seeds'][0]} to {s['seeds'][-1]}, {s['distinct_returns']} different returns, "
          f"standard deviation {s['std']:.1f}, measured at commit {str(m.get('commit'))[:12]}")  # fmt: skip
for m in manifests["shipped"]:
    if "check_score" in m:
        print(f"{m['task']:>12}, shipped: {as_text(m['score'])}, and in games from seed {m['check_score']['seeds'][0]} on {as_text(m['check_score'])}")

# %% [markdown]
# **Explain.** Not as often as 95 times in 100: the new mean has luck of its own, which makes it about five times in six. And where there
# are few *different returns*, an agent may be playing the same few games again and again.

# %% [markdown]
# ## 3. The agents at play
# The weights of this run, playing for a while from a fresh start.

# %%
num_decisions, games = 64, {}
for name in [m["task"] for m in own]:
    one = Pipeline.open(name, budget, run_dir, seed)
    try:
        rngs = [np.random.default_rng(seed)] if one.task.sampled else None
        agent = Agent(one.world_model(), one.controller(), 1, rngs)
    except StageError as error:
        print(f"no film of {name}: {error}")
        continue
    games[name] = films.record(make_env(one.task, 1, seed), agent, num_decisions)
    print(f"{name}: {num_decisions} decisions, paid {games[name].reward.sum():.1f}")

# %%
moments = np.linspace(0, num_decisions - 1, 8).astype(int)
figure = None
if games:
    figure = plots.frame_rows({name: r.frames[moments, 0] for name, r in games.items()}, [f"t = {t}" for t in moments])
figure

# %% [markdown]
# ![A row of eight small frames for each task, time running to the right: the agents of this run at play](../assets/figures/08_agents.png)
#
# *What to expect: drawn at budget `smoke`; nothing has learned anything at that budget.*

# %%
shown = None
if games:
    pictures = np.stack([r.frames[:, 0] for r in games.values()], axis=1)
    shown = films.film(pictures, f"The agents of this run, from left to right: {', '.join(games)}")
shown

# %% [markdown]
# **Explain.** A film shows *how* an agent plays, which a mean hides. It is one game, chosen by nobody, and no evidence for
# the score above.

# %% [markdown]
# **Try.** Go through the game decision by decision: what the agent sees, what V makes of it, and what M expects to come next. Find a
# moment at which M was wrong. Had it thought of what really came?

# %%
viewer, name = None, run.task.name if run.task.name in games else next(iter(games), None)
if name:
    one = Pipeline.open(name, budget, run_dir, seed)
    viewer = widgets.show(step_through.widget(one.task, one.world_model(), games[name]))
viewer

# %% [markdown]
# ## 4. Was the world model worth it?
# PPO learns from the frames themselves, without V and M. `wm compare --task pong` trains it and our agent on the same games and
# measures both in the same way while they learn, several seeds of each. What is counted are *real* decisions, those that V and M
# learned from included, and CPU time. PPO is stopped at three times our decisions: where it has not arrived by then, the ratio is
# *at least* what the table says. Hours are spent on it, so this notebook only shows what is there.
#
# **Predict.** How many times as many decisions does PPO need for half of the way from random play to the target? Does it also need
# more CPU time?

# %%
print(overview_of_shipped(project_root()))

# %%
comparison = find_result(task, budget, run_dir)
others = published(project_root(), task)
if comparison is None:
    print(f"{task} has not been compared with PPO yet; to do it (hours): wm compare --task {task} --seeds 3\n")
    print(efficiency.published_table(others))
else:
    print(f"seeds {comparison['seeds']}, made by: {comparison['command']}\n")
    print(efficiency.tables(comparison, others))

# %%
efficiency.figure(comparison, others) if comparison else None

# %% [markdown]
# **Explain.** A ratio above 1 says that the world model saved real decisions. *Our score at 100,000* asks how many PPO takes to what
# our agent has after that many, also where neither comes far on the way to the target. The interval of a ratio is a bootstrap over the seeds (drawn
# again and again from those we have): a few seeds make a coarse one, a single one has none. Against CPU hours the picture may look different: V and M
# cost computing time, and where the world is a cheap simulator a decision costs next to nothing. A world model pays when decisions are
# what is dear. Rows and lines marked *published* are what others report, under protocols that differ in details;
# `assets/manifests/compare/published.json` names the sources.

# %% [markdown]
# ## 5. What goes wrong: a record that is none
# Here is how to fool oneself with honest numbers. Take the returns of *random play* that a manifest holds, and make of them twenty imaginary
# agents, five episodes each. None of them has learned anything. Publish the best.
#
# **Predict.** Will the champion's score lie above random play's mean, or around it?

# %%
rng = np.random.default_rng(seed)
for m in own or manifests["shipped"]:
    luck = np.array(m["random_score"]["returns"])
    agents = rng.choice(luck, size=(20, 5)).mean(axis=1)
    print(f"{m['task']:>12}: random play {luck.mean():.1f} on average; the best of twenty such agents {agents.max():.1f}")

# %% [markdown]
# **Explain.** The champion looks better than random play, and is random play. The fewer episodes and the more candidates, the greater the
# record. The same happens to whoever tries settings, seeds or checkpoints and reports the best of them with the numbers that chose it. So
# choose with some seeds, and measure with others that had no say. (If random play always earns the same, there is no luck to choose from.)

# %% [markdown]
# ## 6. Exercises
# Write the function in place of `return None`, run the cell and the one below it.

# %% [markdown]
# ### Exercise 8.1 · A hundred seeds, how many starts?
# (10 minutes, easy)
# An Atari game here begins with a number of idle frames that the seed draws, so that there are few starts. How many different ones
# do `num_seeds` seeds meet on average, if all `num_starts` are equally likely?


# %%
def distinct_starts(num_starts: int, num_seeds: int) -> float | None:
    """How many different starts so many seeds meet on average, if all starts are equally likely."""
    return None  # your code here


# %%
print(check_distinct_starts(distinct_starts))

# %% [markdown]
# <details><summary>Hint</summary>
#
# How probable is it that one given start is missed by one seed? And by all of them?
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def distinct_starts(num_starts: int, num_seeds: int) -> float:
#     """How many different starts so many seeds meet on average, if all starts are equally likely."""
#     return num_starts * (1 - (1 - 1 / num_starts) ** num_seeds)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 8.2 · How sure is a mean?
# (10 minutes, medium)
# The 95 % interval of a mean return: mean ± t · s / √n, where s is the standard deviation of the sample (`ddof=1`) and t is Student's
# quantile for n − 1 degrees of freedom. `t_quantile(p, df)` has 100 p % of the distribution below it.


# %%
def interval(returns: np.ndarray) -> tuple[float, float] | None:
    """The 95 % interval (low, high) of the mean of returns (episodes,), by Student's t."""
    return None  # your code here


# %%
print(check_interval(interval))

# %% [markdown]
# <details><summary>Hint</summary>
#
# 95 % in the middle leave 2.5 % on each side.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def interval(returns: np.ndarray) -> tuple[float, float]:
#     """The 95 % interval (low, high) of the mean of returns (episodes,), by Student's t."""
#     half = t_quantile(0.975, len(returns) - 1) * np.std(returns, ddof=1) / np.sqrt(len(returns))
#     return float(np.mean(returns) - half), float(np.mean(returns) + half)
# ```
#
# The library's own is part of `wm_lib.evaluation.summarise`.
#
# </details>

# %% [markdown]
# ### Exercise 8.3 · What did it cost?
# (10 minutes, medium)
# Count the decisions that learning cost in the real environment. Each part has a `stage` (`collect`, `controller` or `evaluate`), a
# `world` (`real` or `dream`), and a `count` in a `unit`: `decisions`, or `frames`, of which each decision holds for `action_repeat`.


# %%
def real_decisions(parts: list[dict[str, Any]], action_repeat: int) -> int | None:
    """Decisions in the real environment; a part has `stage`, `world`, `unit` (decisions or frames) and `count`."""
    return None  # your code here


# %%
print(check_real_decisions(real_decisions))

# %% [markdown]
# <details><summary>Hint</summary>
#
# What V and M learned from belongs to the cost. What was dreamt does not, nor the measuring, which teaches nothing.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def real_decisions(parts: list[dict[str, Any]], action_repeat: int) -> int:
#     """Decisions in the real environment; a part has `stage`, `world`, `unit` (decisions or frames) and `count`."""
#     real = [part for part in parts if part["world"] == "real" and part["stage"] != "evaluate"]
#     return sum(part["count"] // (action_repeat if part["unit"] == "frames" else 1) for part in real)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 8.4 · An honest choice
# (10 minutes, medium)
# Several agents have played two sets of episodes. Choose the agent with the best mean in the first set, `choosing`, and say what you
# may report of it.


# %%
def honest_score(choosing: np.ndarray, measuring: np.ndarray) -> float | None:
    """What to report: returns (agents, episodes) for choosing the best agent, and others for measuring it."""
    return None  # your code here


# %%
print(check_honest_score(honest_score))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Whatever chose the agent is too good to be reported.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def honest_score(choosing: np.ndarray, measuring: np.ndarray) -> float:
#     """What to report: returns (agents, episodes) for choosing the best agent, and others for measuring it."""
#     best = choosing.mean(axis=1).argmax()
#     return float(measuring[best].mean())
# ```
#
# </details>

# %% [markdown]
# ## 7. Check yourself
# 1. **What does a 95 % interval promise?**
#    <details><summary>Answer</summary>
#
#    Were all of it repeated many times, 95 in 100 such intervals would hold the true mean. Of this one alone it says nothing more.
#    </details>
# 2. **Does the interval also cover other trainings?**
#    <details><summary>Answer</summary>
#
#    No. It is about the episodes of one agent; another seed of training makes another agent.
#    </details>
# 3. **Why is the number of different returns written down?**
#    <details><summary>Answer</summary>
#
#    Few of them betray an agent that plays the same few games again and again; then the episodes are no independent evidence.
#    </details>
# 4. **Why do the data of V and M count as cost?**
#    <details><summary>Answer</summary>
#
#    They are decisions in the real environment like any other. Without them the agent could not have learned so fast.
#    </details>
# 5. **Twenty settings were tried and the best is reported, with its interval. What is wrong?**
#    <details><summary>Answer</summary>
#
#    The interval knows nothing of the choice. The best was chosen for its luck, too: measure it anew, with other seeds.
#    </details>

# %% [markdown]
# ## Summary

# %%
reached = [m["task"] for m in own if m["score"]["mean"] >= m["target"]]
surely = [m["task"] for m in own if None not in m["score"]["ci95"] and min(m["score"]["ci95"]) >= m["target"]]
print(f"{len(own)} of {len(names)} tasks measured in this run; target reached by the mean: {', '.join(reached) or 'none'};")
print(f"by the whole interval: {', '.join(surely) or 'none'}")

# %% [markdown]
# - Every number in the table has a file behind it with seeds, settings, versions and the hashes of the weights.
# - A mean without an interval, a baseline and a cost is not a result.
#
# ## Next
# Measure a score yourself, from the command line: `wm evaluate --task pong --episodes 100 --seed 10000`. Then change something and try to
# beat it: [CONTRIBUTING](../CONTRIBUTING.md) says how to give it back, and [00 Start here](00_start_here.ipynb) is where the way began.
