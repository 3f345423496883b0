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
# *Minutes on two cores: smoke 0.3, laptop 0.3.*
#
# ## Goals
# - See at a glance what works here, and what to type if something does not.
# - Say what the course can still do without torch, and what without Gymnasium.
# - Find out what this processor is good at.
# - Know the rules of the four worlds.
#
# ## Before you start
# Nothing but [00 Start here](00_start_here.ipynb). Whatever is missing or broken, this notebook still runs to its end, and
# `wm doctor` in a terminal says the same as its first section.

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
import os
import tempfile
import time
from pathlib import Path
from unittest import mock

from wm_lib import doctor
from wm_lib.control.agent import RandomAgent
from wm_lib.course import films, plots
from wm_lib.course.exercises.diagnostics import check_choose_mode, check_decisions_per_second, check_judge
from wm_lib.pipeline import Pipeline
from wm_lib.provenance import machine
from wm_lib.tasks import ACTION_NAMES, TASKS

run = Pipeline.open(task, budget, run_dir, seed)
print(f"{run.task.name}: {run.directory}")

# %% [markdown]
# ## 1. What works here
# **Predict.** Which of the packages will take longest to import?
#
# **Run.** Each one is imported and put to a small real use: a convolution and its gradient, a step of an environment, a
# generation of evolution, a picture made smaller. An entry in the list of installed packages is no proof that it works.

# %%
seconds = run.loaded.doctor.timeout_seconds
needed = doctor.bytes_of_frames(budget)
diagnosis = doctor.diagnose(timeout_seconds=seconds, run_dir=run.directory, needed_bytes=needed)
print(doctor.summary(diagnosis))

# %%
slowest = max(diagnosis.components, key=lambda name: diagnosis.components[name].seconds)
print(f"The slowest is {slowest}, with {diagnosis.components[slowest].seconds:.1f} s.")
broken = [name for name, component in diagnosis.components.items() if not component.works]
print(f"To be mended: {', '.join(broken)}; the last column says how." if broken else "Everything works.")
plots.Board(diagnosis)

# %% [markdown]
# **Explain.** ✓ works, ! works but slowly or with too little of something, ✗ does not. What follows from it is the *mode*:
#
# | mode | plays in | imagines with | needs |
# |---|---|---|---|
# | `full` | the real worlds | V and M in torch | torch, stable-baselines3, and the world's own packages |
# | `gym_only` | the real worlds | a world model in NumPy | the world's own packages |
# | `simulation` | simple simulated worlds | a world model in NumPy | what is always installed |
#
# A score made in a simulated world says nothing about the real one, so every score carries its mode.

# %% [markdown]
# ## 2. Breaking it on purpose
# A package need not be missing to be of no use. It may hang while it is imported, because a disk does not answer or a lock is
# never released, or take the whole process with it. So the doctor tries each one in a process of its own, and ends it
# when its time is up. We put a fake in the place of a package and see what the doctor says of it.
#
# **Predict.** Which mode remains if torch hangs? If Gymnasium is missing? If EnvPool is?

# %%
HANGS = "import time; time.sleep(60)"
CRASHES = "import os; os.abort()"
MISSING = "raise ModuleNotFoundError(f'No module named {__name__!r}')"


def with_fault(package: str, source: str, timeout_seconds: float) -> doctor.Diagnosis:
    """What the doctor would say of this machine if importing the package ran this source instead."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{package}.py").write_text(source)
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        with mock.patch.dict(os.environ, PYTHONPATH=path):
            faulty = doctor.diagnose([package], timeout_seconds)
    return doctor.Diagnosis({**diagnosis.components, **faulty.components})


# %%
for package, source, patience in (
    ("torch", HANGS, 2),
    ("torch", CRASHES, seconds),
    ("gymnasium", MISSING, seconds),
    ("envpool", MISSING, seconds),
):
    found = with_fault(package, source, patience)
    print(f"{package}: {found.components[package].status}\n    {doctor.summary(found)}")

# %% [markdown]
# **Explain.** A package that hangs costs its time-out and no more (`doctor.timeout_seconds` in the settings, longer than the two
# seconds here). Without torch the worlds are still real, and a world model made of NumPy looks at them. Without Gymnasium
# there is no real world, whatever else works. EnvPool only makes things faster: Gymnasium takes its place.

# %% [markdown]
# ## 3. The processor
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
if diagnosis.components["torch"].works:
    import torch

    single, half = seconds_of_product(torch.float32), seconds_of_product(torch.bfloat16)
    print(f"torch uses {torch.get_num_threads()} threads; a product in bfloat16 is {single / half:.1f} times as fast as in float32")

# %% [markdown]
# **Explain.** Training uses bfloat16 by itself where the processor has AVX-512 instructions for it; the figure says what that is worth.
# Scores are always measured in float32.

# %% [markdown]
# ## 4. The four worlds
# An *episode* is one game from its start to its end, a *decision* one choice of an action, held for a few frames, and the *return* the
# sum of all that an episode pays. What the agent may do is a short list of *actions*; how often it may decide before the episode is cut
# off, and which mean return over 100 episodes counts as reached, belongs to the task.

# %%
for name, world in TASKS.items():
    print(f"{name:>12}: {world.env_id}, target {world.target:g}, at most {world.max_decisions} decisions of "
          f"{world.frames_per_decision} frames, {world.num_actions} actions: {'; '.join(ACTION_NAMES[name])}")  # fmt: skip

# %% [markdown]
# Pong pays +1 or −1 for a point; Breakout pays for every brick; LunarLander pays for coming down gently and takes for fuel
# and crashes; CarRacing pays for every new piece of road and takes a little for every moment.
#
# **Predict.** How many decisions a second does this computer manage in your task, on the fast path and in Gymnasium?

# %%
num_envs, num_decisions = 4, 25
speed = {}
if diagnosis.mode_for(run.task) == "simulation":
    print(f"{run.task.name} does not run here: {diagnosis.reason_for(run.task)}")
else:
    from wm_lib.worlds.envs import make_env

    fast = diagnosis.components["envpool"].works and diagnosis.components["opencv-python"].works
    for backend in ("envpool", "gymnasium") if fast else ("gymnasium",):
        env = make_env(run.task, num_envs, seed, backend)
        env.reset()
        start = time.perf_counter()
        films.record(env, RandomAgent(run.task.num_actions, num_envs), num_decisions)
        speed[backend] = num_envs * num_decisions / (time.perf_counter() - start)
        print(f"{backend:>10}: {speed[backend]:.0f} decisions/s in {run.task.name}")

# %% [markdown]
# **Explain.** The fast path is C++ and plays many games in one process. Data and training come from there; scores are always
# measured in Gymnasium, which is the reference.

# %% [markdown]
# ## 5. Exercises
# Each has a function to fill in and a cell that says how you fare. Run them in any order; nothing later depends on them.

# %% [markdown]
# ### Exercise 1.1 · How fast?
# (5 minutes, easy) The same `num_decisions` were played a few times in `num_envs` games side by side, and timed. How many
# decisions a second
# can this computer do, in all games together? Whatever else it is doing can only make a timing longer.

# %%
def decisions_per_second(seconds: list[float], num_envs: int, num_decisions: int) -> float | None:
    """Of all games together; `seconds` are the timings, `num_decisions` those of one game."""
    return None


# %%
print(check_decisions_per_second(decisions_per_second))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which of the timings was disturbed least? Section 3 takes it too.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def decisions_per_second(seconds: list[float], num_envs: int, num_decisions: int) -> float:
#     """Of all games together; `seconds` are several timings of `num_decisions` decisions in `num_envs` games."""
#     return num_envs * num_decisions / min(seconds)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 1.2 · What became of it?
# (8 minutes, medium) A probe runs in a process of its own. You know its exit code (below 0 where a signal killed it, `None` while
# it has not ended), how many seconds it has taken, and the time-out. While it has not ended, say `"waiting"`, or `"hang"` past the
# time-out. Once it has ended: `"crash"` for any code but 0, `"slow"` if it took more than half of the time-out (or longer than all of
# it), else `"ok"`.

# %%
def judge(code: int | None, seconds: float, timeout: float) -> str | None:
    """ok, slow, crash, hang or waiting."""
    return None


# %%
print(check_judge(judge))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Ask first whether it has ended. `None` and 0 are both false for Python, and mean very different things.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def judge(code: int | None, seconds: float, timeout: float) -> str:
#     """What became of a process after `seconds`: its exit code, below 0 for a signal, or None while it has not ended."""
#     if code is None:
#         return "hang" if seconds > timeout else "waiting"
#     if code != 0:
#         return "crash"
#     return "slow" if seconds > timeout / 2 else "ok"
# ```
#
# The doctor's own version, `wm_lib.doctor`, also knows whether it hung on import or in use, and what to type.
#
# </details>

# %% [markdown]
# ### Exercise 1.3 · Which mode?
# (10 minutes, medium) From the status of every component, choose the mode of a task: `"full"`, `"gym_only"` or `"simulation"`, as
# in the table of
# section 1. `world` names what the real environment needs, `brain` what V, M and PPO (which trains C, notebook 05) need. What is `"ok"` or `"slow"` can be used.

# %%
def choose_mode(status: dict[str, str], world: tuple[str, ...], brain: tuple[str, ...]) -> str | None:
    """The highest mode in which the task can be played."""
    return None


# %%
print(check_choose_mode(choose_mode))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Look at the world first: without it neither `full` nor `gym_only` has anything to play in.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def choose_mode(status: dict[str, str], world: tuple[str, ...], brain: tuple[str, ...]) -> str:
#     """The highest mode in which a task can be played.
#
#     Args:
#         status: Of every component by name: "ok", "slow", "missing", "wrong_version", "import_error", "hang" or "crash".
#         world: Components that the real environment needs.
#         brain: Components that V, M and PPO need.
#     """
#     works = {name for name, each in status.items() if each in ("ok", "slow")}
#     if not works.issuperset(world):
#         return "simulation"
#     return "full" if works.issuperset(brain) else "gym_only"
# ```
#
# The library's own is `wm_lib.doctor.Diagnosis.mode_for`. It also minds EnvPool, which may be missing but must not hang.
#
# </details>

# %% [markdown]
# ## 6. Check yourself
# Answer before you unfold.
#
# 1. **Why is a package that is in the list of installed ones still imported and used?**
#
# <details><summary>Answer</summary>
#
# The list only says that files were copied once. A library of the system may be missing, a version may not fit, or the import may
# never end.
#
# </details>
#
# 2. **Why is every component tried in a process of its own?**
#
# <details><summary>Answer</summary>
#
# One that hangs or crashes would take the notebook with it. A process can be ended from outside.
#
# </details>
#
# 3. **torch is missing, everything else works. What can you still do?**
#
# <details><summary>Answer</summary>
#
# Play in the real worlds, with a world model made of NumPy: mode `gym_only`.
#
# </details>
#
# 4. **May a score of mode `simulation` be compared with a target?**
#
# <details><summary>Answer</summary>
#
# No. It was made in a simple simulated world, and says nothing about the real one; so it is shown without a target.
#
# </details>
#
# 5. **EnvPool is missing. Which scores change?**
#
# <details><summary>Answer</summary>
#
# None: scores are always measured in Gymnasium. Only collecting and training take longer.
#
# </details>

# %% [markdown]
# ## Summary
# - You know what works here, what to type if something does not, and which mode follows.
# - A package that hangs or crashes is found out in a process of its own; the rest of the course goes on in a lower mode.
# - You know whether 16-bit products are fast here.
# - Each world is a task with a few actions, a limit and a target.
#
# ## Next
# [02 Data collection](02_data_collection.ipynb): what should an agent that knows nothing look at?
