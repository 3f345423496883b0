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
# # 00 Start here
# **What is a world model, and will my computer run one?**
#
# Close your eyes and catch a ball: you cannot see it any more, and yet your hand knows where it will be. Something in you
# goes on playing the world when the picture stops. Ha and Schmidhuber ([2018](https://arxiv.org/abs/1803.10122)) built such
# a thing from three parts, and so shall we:
#
# | part | job | built in |
# |---|---|---|
# | **V**, the eyes | turns a frame into a few numbers, *z* | [notebook 03](03_vae.ipynb) |
# | **M**, the memory | from *z* and the action, says what *z* may come next | [notebook 04](04_mdn_rnn.ipynb) |
# | **C**, the hand | from *z* and the memory *h*, chooses the action | [notebook 05](05_controller.ipynb) |
#
# V and M together are the world model. Once they are good enough, C can learn inside of them, without the real world:
# in a dream.
#
# ## Goals
# - Say in a sentence each what V, M and C do.
# - Meet the four worlds and watch somebody play them who has no idea.
# - Know how the notebooks work and where their results go.
#
# ## Before you start
# You read Python and NumPy, and you have trained some neural network once. A laptop is enough; there is no GPU in
# this course.

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
# Every notebook begins like this. `run` is the training of one task in one folder: it knows what has been made already.

# %%
import numpy as np

from wm_lib.config import resolve_budget
from wm_lib.control.agent import RandomAgent
from wm_lib.course import plots
from wm_lib.errors import UsageError
from wm_lib.pipeline import STAGES, Pipeline
from wm_lib.tasks import TASKS
from wm_lib.worlds.envs import make_env

run = Pipeline.open(task, budget, run_dir, seed)
print(f"{run.task.name} at budget {resolve_budget(budget)}, in {run.directory}")

# %% [markdown]
# ## 1. Four worlds
# All four show a picture of 64 × 64 pixels and take the number of an action, nothing else. No positions, no speeds.
#
# **Predict.** An agent picks its actions by rolling dice. In which of the worlds will it be paid anything in its first
# decisions? In which will it be punished?
#
# **Run.** A minute of play, shortened.

# %%
num_envs, num_decisions = 4, 60
played = {}
for name, world in TASKS.items():
    try:
        env = make_env(world, num_envs, seed)
        played[name] = plots.record(env, RandomAgent(world.num_actions, num_envs), num_decisions)
    except (ImportError, UsageError) as error:
        print(f"{name} does not run here: {error}")

for name, recording in played.items():
    paid = recording.reward.sum(axis=0)
    print(f"{name:>12}: paid {', '.join(f'{p:+.1f}' for p in paid)} in {num_decisions} decisions of {num_envs} games")

# %%
moments = np.linspace(0, num_decisions - 1, 8).astype(int)
plots.frame_rows({name: r.frames[moments, 0] for name, r in played.items()}, [f"t = {t}" for t in moments])

# %%
plots.film(
    np.stack([recording.frames[:, 0] for recording in played.values()], axis=1),
    f"Random play, from left to right: {', '.join(played)}",
)

# %% [markdown]
# **Explain.** A frame holds everything you would want to know, somewhere in its 12,288 numbers. Most of them never matter:
# the score board, the grass, the sky. What matters may be two pixels of ball. Finding the few numbers that count is what V
# is for.
#
# One frame does not say where the ball is *going*. That takes memory, which is what M is for.

# %% [markdown]
# ## 2. How the course works
# A training goes through *stages*, and each notebook makes one and looks inside it. What exists is not made twice, so the
# notebooks can be run in any order and as often as you like.
#
# **Predict.** Is anything there already?

# %%
for stage in STAGES:
    done = (run.directory / stage / "stage.json").exists()
    print(f"{stage:>10}: {'there' if done else 'not made yet'}")

# %% [markdown]
# **Explain.** What is not made yet is made by the first notebook that needs it. How much is computed is decided by one dial, `budget`:
#
# - `smoke` only proves that every cell runs. Nothing has learned anything, and its scores mean nothing.
# - `laptop` is the default. Agents play clearly better than chance.
# - `full` goes for the target scores, and takes an evening or more.
#
# In each section you will find **Predict**, **Run** and **Explain**. Do write your prediction down before you run the cell;
# being wrong is where the learning happens.

# %% [markdown]
# ## Summary
# - V sees, M remembers and predicts, C acts. V and M together are a world model.
# - The four worlds look different and are used in the same way: a frame in, the number of an action out.
# - Results are kept in the folder of the run, stage by stage.
#
# ## Next
# [01 Diagnostics](01_diagnostics.ipynb): what is installed here, and what do the four worlds ask of us?
