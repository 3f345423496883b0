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
# # 01 Diagnostics
# **What do the four worlds show, ask and pay, and is everything here to run them?**
#
# ## Goals
# - See at a glance which packages are there, and what to type if one is not.
# - Find out what this processor is good at.
# - Know the rules of the four worlds.
#
# ## Before you start
# Nothing but [00 Start here](00_start_here.ipynb). If a package is missing, this notebook still runs to its end.

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
import importlib
import os
import time
from importlib import metadata

from wm_lib.control.agent import RandomAgent
from wm_lib.course import plots
from wm_lib.pipeline import Pipeline
from wm_lib.provenance import machine
from wm_lib.tasks import TASKS

run = Pipeline.open(task, budget, run_dir, seed)
print(f"{run.task.name}: {run.directory}")

# %% [markdown]
# ## 1. The packages
# **Predict.** Which of these will take longest to import?
#
# **Run.** Each one is imported for real: an entry in the list of installed packages is no proof that it works.

# %%
PACKAGES = {  # module: (package, what it is for)
    "numpy": ("numpy", "arrays"),
    "torch": ("torch", "V, M and PPO"),
    "gymnasium": ("gymnasium", "the reference environments"),
    "ale_py": ("ale-py", "Pong and Breakout"),
    "Box2D": ("box2d", "LunarLander and CarRacing"),
    "pygame": ("pygame", "drawing LunarLander and CarRacing"),
    "cv2": ("opencv-python", "resizing frames"),
    "envpool": ("envpool", "the fast environments"),
    "cma": ("cma", "evolution"),
    "stable_baselines3": ("stable-baselines3", "PPO"),
    "tensorboard": ("tensorboard", "learning curves in the browser"),
}


def probe(module: str, package: str) -> tuple[str, float, str]:
    """Version, seconds the import took, and what to do where it failed."""
    start = time.perf_counter()
    try:
        importlib.import_module(module)
        hint = ""
    except ModuleNotFoundError:
        hint = f"missing: pip install {package}"
    except Exception as error:  # whatever a broken installation throws is what we want to see
        first_line = (str(error).splitlines() or [""])[0]
        hint = f"broken ({type(error).__name__}: {first_line[:80]}): pip install --force-reinstall {package}"
    seconds = time.perf_counter() - start
    try:
        return metadata.version(package), seconds, hint
    except metadata.PackageNotFoundError:
        return "-", seconds, hint


# %%
found = {package: probe(module, package) for module, (package, _) in PACKAGES.items()}
for package, use in PACKAGES.values():
    version, seconds, hint = found[package]
    print(f"{package:>18} {version:>12} {seconds:6.2f} s  {hint or 'ok'}  ({use})")
broken = [package for package, (_, _, hint) in found.items() if hint]
print(f"\nTo be mended: {', '.join(broken)}" if broken else "\nEverything is there.")

# %% [markdown]
# **Explain.** Only `numpy`, `cma` and a few small ones are always needed. Without `envpool` everything works through
# Gymnasium, slower. Without `torch` there is no V and no M; that package carries the notebooks from 03 on.

# %% [markdown]
# ## 2. The processor
# Some processors multiply numbers of 16 bits (`bfloat16`) many times faster than those of 32. V spends its time on such
# products, so it matters.
#
# **Predict.** Is yours one of them?

# %%
def seconds_of_product(dtype, size: int = 1024, repeats: int = 5) -> float:
    """Fastest of a few products of two size x size matrices."""
    import torch

    a = torch.ones(size, size, dtype=dtype)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times)


about = machine()
print(f"{about['system']}, {about['processor']}, {os.cpu_count()} cores")
if not found["torch"][2]:
    import torch

    single, half = seconds_of_product(torch.float32), seconds_of_product(torch.bfloat16)
    print(f"torch uses {torch.get_num_threads()} threads; a product in bfloat16 is {single / half:.1f} times as fast as in float32")

# %% [markdown]
# **Explain.** Where the figure is well above 1, training uses bfloat16 by itself. Scores are always measured in float32.

# %% [markdown]
# ## 3. The four worlds
# What the agent may do is a short list of *actions*; how often it may decide before the episode is cut off, and which mean
# return over 100 episodes counts as reached, belongs to the task.

# %%
for name, world in TASKS.items():
    print(f"{name:>12}: {world.env_id}, target {world.target:g}, at most {world.max_decisions} decisions of "
          f"{world.frames_per_decision} frames, {world.num_actions} actions {world.actions}")  # fmt: skip

# %% [markdown]
# Pong pays +1 or −1 for a point; Breakout pays for every brick; LunarLander pays for coming down gently and takes for fuel
# and crashes; CarRacing pays for every new piece of road and takes a little for every moment.
#
# **Predict.** How many decisions a second does this computer manage in your task, on the fast path and in Gymnasium?

# %%
num_envs, num_decisions = 4, 25
speed = {}
if not broken:
    from wm_lib.worlds.envs import make_env

    for backend in ("envpool", "gymnasium"):
        env = make_env(run.task, num_envs, seed, backend)
        env.reset()
        start = time.perf_counter()
        plots.record(env, RandomAgent(run.task.num_actions, num_envs), num_decisions)
        speed[backend] = num_envs * num_decisions / (time.perf_counter() - start)
        print(f"{backend:>10}: {speed[backend]:.0f} decisions/s in {run.task.name}")

# %% [markdown]
# **Explain.** The fast path is C++ and plays many games in one process. Data and training come from there; scores are always
# measured in Gymnasium, which is the reference.

# %% [markdown]
# ## Summary
# - You know what is installed and what to type if something is missing.
# - You know whether 16-bit products are fast here.
# - Each world is a task with a few actions, a limit and a target.
#
# ## Next
# [02 Data collection](02_data_collection.ipynb): what should an agent that knows nothing look at?
