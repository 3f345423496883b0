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
# # 07 Curriculum
# **Does the same recipe take one agent through all four?**
#
# ## Goals
# - Run the whole way, from frames to a score, on Pong, LunarLander, Breakout and CarRacing.
# - Read a score: a mean, how sure it is, and what it has to be compared with.
# - See what each one cost in real decisions and in minutes.
#
# ## Before you start
# Any of the notebooks 02 to 06; whatever they made is used again here, and only what is missing is made. At `laptop` this is the
# long one: leave it alone with a cup of tea, or with a meal. Interrupted, it goes on where it was.

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
# `task` does not matter in this notebook: it goes through all of them, in the order of `curriculum.stages`.

# %%
from wm_lib.course import plots
from wm_lib.errors import StageError
from wm_lib.pipeline import STAGES, Pipeline
from wm_lib.report import beats_random, results_table

run = Pipeline.open(task, budget, run_dir, seed)
names = run.config.curriculum.stages
print(f"{', '.join(names)} in {run.directory.parent}")

# %% [markdown]
# ## 1. The same recipe, four times
# Collect, train V, encode, train M, train C, measure. The program is the same for every task; only a few numbers differ, such as how
# rewards are scaled.
#
# **Predict.** Order the four from easiest to hardest for an agent that learns from pixels. Which will be furthest from its target?

# %%
manifests, failures = {}, {}
for name in names:
    one = Pipeline.open(name, budget, run_dir, seed)
    try:
        one.build("evaluate")
        manifests[name] = one.manifest()
    except StageError as error:  # the other tasks can still go on
        failures[name] = str(error)
for name, error in failures.items():
    print(f"{name} failed: {error}")

# %% [markdown]
# ## 2. What came of it
# A score is the mean return over whole episodes with fixed seeds in the reference environment. The interval says how far the true mean
# may be from it: were all of this repeated many times, 95 in 100 such intervals would hold it.

# %%
print(results_table(list(manifests.values())))
for name, manifest in manifests.items():
    reached = "target reached" if manifest["score"]["mean"] >= manifest["target"] else "target not reached"
    apart = "clearly better than" if beats_random(manifest) else "not clearly apart from"
    print(f"{name}: {reached}, {apart} random play")
for name in failures:
    print(f"{name}: failed, see above")

# %%
plots.scores(list(manifests.values()))

# %% [markdown]
# **Explain.** Each panel has its own scale: a point in Pong is not a point in CarRacing. Look first whether the two black intervals
# overlap. If they do, so few episodes cannot tell the agent from chance, however different the bars look. Expect that at `smoke`,
# which trains for seconds.

# %% [markdown]
# ## 3. Where the time went
# **Predict.** Which stage is the most expensive one?

# %%
minutes = {stage: sum(m["minutes"].get(stage, 0.0) for m in manifests.values()) for stage in STAGES[:-1]}
print(", ".join(f"{stage}: {spent:.1f} minutes" for stage, spent in minutes.items()))
plots.bars(minutes, "minutes", "All tasks together, before the measuring")

# %%
for name, manifest in manifests.items():
    steps = {key: value for key, value in manifest["real_steps"].items() if key != "total"}
    print(f"{name}: real decisions {', '.join(f'{key} {value}' for key, value in steps.items())}")

# %% [markdown]
# **Explain.** V and M learn from data that was collected once. C asks for new decisions all the time. An agent that learns in its
# dream moves cost from the second kind to none at all, which is why dreams are worth the trouble.

# %% [markdown]
# ## Summary

# %%
reached = [name for name, manifest in manifests.items() if manifest["score"]["mean"] >= manifest["target"]]
print(f"{len(manifests)} of {len(names)} tasks ran to their end, {len(failures)} failed; target reached: {', '.join(reached) or 'none'}")

# %% [markdown]
# - One program, four worlds.
# - A score needs an interval, a baseline and its cost beside it.
#
# ## Next
# [08 Results](08_results.ipynb): what did it reach, and how do we know?
