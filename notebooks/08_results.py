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
# ## Goals
# - Read the evidence: for every score there is a *manifest* that says how it came about.
# - Know the protocol well enough to object to it.
# - Watch the agents whose scores these are.
#
# ## Before you start
# [07 Curriculum](07_curriculum.ipynb) writes the manifests. This notebook trains nothing; where some are missing it shows what there is.

# %% [markdown]
# ## Parameters
# Change them here in JupyterLab, or from outside with papermill: `-p task pong`. `wm course` does that for all notebooks.

# %% tags=["parameters"]
task: str = "car-racing"  # pong, lunar-lander, breakout or car-racing
budget: str = "auto"  # smoke, laptop or full; auto takes WM_BUDGET, else laptop
seed: int = 0  # of everything random
run_dir: str = "auto"  # folder of the run; auto is runs/BUDGET
# %% [markdown]
# ## Setup

# %%
import numpy as np

from wm_lib import efficiency
from wm_lib.compare import find_result
from wm_lib.control.agent import Agent
from wm_lib.course import plots
from wm_lib.errors import StageError
from wm_lib.folders import project_root
from wm_lib.pipeline import Pipeline
from wm_lib.report import find_manifests, results_table
from wm_lib.worlds.envs import make_env

run = Pipeline.open(task, budget, run_dir, seed)
names = run.config.curriculum.stages
print(f"looking in {run.directory.parent} and {project_root() / 'assets' / 'manifests'}")

# %% [markdown]
# ## 1. The table
# **Predict.** From what you have seen so far: which interval will be the widest, measured against its target?

# %%
manifests = {}
for source, folder in {"this run": run.directory.parent, "shipped": project_root() / "assets" / "manifests"}.items():
    try:
        manifests[source] = find_manifests(folder)
    except StageError as error:
        manifests[source] = []
        print(f"left out: {error}")
    print(f"{source}:\n{results_table(manifests[source])}\n" if manifests[source] else f"{source}: no manifests\n")
own = manifests["this run"]
missing = [name for name in names if name not in {m["task"] for m in own}]
if missing:
    print(f"not in this run yet: {', '.join(missing)}; notebook 07 makes them, or: wm train --task {missing[0]} --component all")

# %%
plots.scores(own or manifests["shipped"])

# %% [markdown]
# **Explain.** A score of few episodes is a rough guess, and its interval says so. The published ones take 100. A run at `smoke` has
# learned nothing; its numbers are here to show that the table works.

# %% [markdown]
# ## 2. How it is measured
# - **Where.** In Gymnasium's own environment, not on the fast path that training used, and in float32.
# - **What.** Whole episodes, raw rewards: nothing clipped, scaled or shaped. The seeds are fixed and follow one another.
# - **Atari.** Each decision holds for four frames, and up to 30 idle ones start a game. Losing a life does not end it. FIRE is
#   pressed by the environment and counts as a decision. Actions are *sampled*, with a generator seeded per episode, since a fixed
#   agent could learn the few possible starts by heart.
# - **LunarLander and CarRacing.** The agent takes its favourite action.
# - **Cost.** *Real steps* are all decisions in the real environment, the data for V and M included.
# - **Never** is a point on a learning curve called a score.
#
# **Predict.** If you measured again with other seeds, would the new mean lie in the old interval?

# %%
for m in own or manifests["shipped"]:
    s = m["score"]
    print(f"{m['task']:>12}: seeds {s['seeds'][0]} to {s['seeds'][-1]}, {s['distinct_returns']} different returns, "
          f"standard deviation {s['std']:.1f}, measured at commit {str(m.get('commit'))[:12]}")  # fmt: skip

# %% [markdown]
# ## 3. The agents at play
# The weights of this run, playing for a while from a fresh start.

# %%
num_decisions, films = 64, {}
for name in [m["task"] for m in own]:
    one = Pipeline.open(name, budget, run_dir, seed)
    try:
        rngs = [np.random.default_rng(seed)] if one.task.sampled else None
        agent = Agent(one.world_model(), one.controller(), 1, rngs)
    except StageError as error:
        print(f"no film of {name}: {error}")
        continue
    films[name] = plots.record(make_env(one.task, 1, seed), agent, num_decisions)
    print(f"{name}: {num_decisions} decisions, paid {films[name].reward.sum():.1f}")

# %%
moments = np.linspace(0, num_decisions - 1, 8).astype(int)
figure = None
if films:
    figure = plots.frame_rows({name: r.frames[moments, 0] for name, r in films.items()}, [f"t = {t}" for t in moments])
figure

# %%
shown = None
if films:
    pictures = np.stack([r.frames[:, 0] for r in films.values()], axis=1)
    shown = plots.film(pictures, f"The agents of this run, from left to right: {', '.join(films)}")
shown

# %% [markdown]
# **Explain.** A film shows *how* an agent plays, which a mean hides. It is one game, chosen by nobody, and no evidence for
# the score above.

# %% [markdown]
# ## 4. Was the world model worth it?
# PPO learns from the frames themselves, without V and M. `wm compare --task pong` trains it and our agent in the same environments and
# measures both in the same way while they learn, several seeds of each. What is counted are *real* decisions, those that V and M
# learned from included, and CPU time. PPO is stopped at three times our decisions: where it has not arrived by then, the ratio is
# *at least* what the table says. Hours are spent on it, so this notebook only shows what is there.
#
# **Predict.** How many times as many decisions does PPO need for half of the way from random play to the target? Does it also need
# more CPU time?

# %%
comparison = find_result(task, budget, run_dir)
others = efficiency.published(project_root(), task)
if comparison is None:
    print(f"{task} has not been compared with PPO yet; to do it (hours): wm compare --task {task} --seeds 3")
else:
    print(f"seeds {comparison['seeds']}, made by: {comparison['command']}\n")
    print(efficiency.tables(comparison, others))

# %%
efficiency.figure(comparison, others) if comparison else None

# %% [markdown]
# **Explain.** A ratio above 1 says that the world model saved real decisions; its interval is a bootstrap over the seeds, and three
# seeds make a coarse one. Against CPU hours the picture may look different: V and M cost computing time, and where the world is a
# cheap simulator a decision costs next to nothing. A world model pays when decisions are what is dear. Rows and lines marked
# *published* are what others report, under protocols that differ in details; `assets/manifests/compare/published.json` names the sources.

# %% [markdown]
# ## Summary

# %%
reached = [m["task"] for m in own if m["score"]["mean"] >= m["target"]]
print(f"{len(own)} of {len(names)} tasks measured in this run; target reached: {', '.join(reached) or 'none'}")

# %% [markdown]
# - Every number in the table has a file behind it with seeds, settings, versions and the hashes of the weights.
# - A mean without an interval, a baseline and a cost is not a result.
#
# ## Next
# Measure a score yourself, from the command line: `wm evaluate --task pong --episodes 100 --seed 10000`. Then change something and try to
# beat it: [CONTRIBUTING](../CONTRIBUTING.md) says how to give it back, and [00 Start here](00_start_here.ipynb) is where the way began.
