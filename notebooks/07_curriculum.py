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
# *Minutes on two cores: smoke 1.3, laptop 103.*
#
# ## Goals
# - Run the whole way, from frames to a score, on Pong, LunarLander, Breakout and CarRacing.
# - Watch it, hold it, stop it, and go on; and see what it does when a training crashes or hangs.
# - Read a score: a mean, how sure it is, what it has to be compared with, and what it cost.
#
# ## Before you start
# Any of the notebooks 02 to 06; whatever they made is used again here, and only what is missing is made. At `laptop` this is the
# long one, as its minutes above say: leave it alone over a meal. Interrupted, it goes on where it was.

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
# `task` does not matter in this notebook: it goes through all of them, in the order of `curriculum.stages`.

# %%
import json  # noqa: F401  (for exercise 7.2)
import shutil
import sys

from wm_lib.course import plots
from wm_lib.course.board import describe, look
from wm_lib.course.exercises.curriculum import check_next_try, check_read_events, check_watch
from wm_lib.course.session import Session
from wm_lib.curriculum import Curriculum
from wm_lib.curriculum import run as run_curriculum
from wm_lib.curriculum_report import report_table
from wm_lib.pipeline import Pipeline
from wm_lib.report import beats_random

run = Pipeline.open(task, budget, run_dir, seed)
plan = Curriculum.open(budget, run_dir, seed)
print(f"{', '.join(plan.configs)} in {plan.run_dir}; journal and logs in {plan.directory}")

# %% [markdown]
# ## 1. The same recipe, four times
# Collect, train V, encode, train M, train C, measure. The program is the same for every task; only a few numbers differ, such as how
# rewards are scaled. Each task runs in a process of its own. If its score meets the target, the next one begins. If not, it gets
# further *rounds*, at most `curriculum.max_retries` of them, in which the agent collects new data and V, M and C go on with it. Then
# the next task begins in any case.
#
# **Predict.** Order the four from easiest to hardest for an agent that learns from pixels. Which will be furthest from its target?

# %%
session = Session(plan)
session.board

# %% [markdown]
# The board above is alive in JupyterLab. *Pause* freezes the training where it stands, *Go on* wakes it, *Stop* ends it in good
# order: run the cell above again, and it goes on. (Windows cannot pause.) In a terminal `wm curriculum --budget laptop` does the
# same, with your budget, and your `--run-dir` and `--seed` if you changed them. `curriculum/board.png` in the folder of the run is
# the picture, drawn anew after each try. The next cell waits for the end.

# %%
report = session.wait()
print(f"mode {report['mode']}: {report['reason']}" + ("" if report["complete"] else "; stopped before its end"))
print(report_table(report))

# %%
print(describe(look(plan)))
session.picture()

# %% [markdown]
# **Explain.** Everything that happened stands in `journal.jsonl`, one line each, written to the disk before the next step. Whatever
# ends this notebook, also a cut cable, the same cell reads the journal and goes on; the stages of a training do so from their last
# checkpoint, and end with the very numbers they would have ended with.

# %% [markdown]
# ## 2. What came of it
# A score is the mean return over whole episodes with fixed seeds in the reference environment. The interval says how far the true mean
# may be from it: were this same agent measured many times, each time on other episodes, 95 in 100 such intervals would hold it. It does
# not say what another training would reach.

# %%
scored = [row for row in report["stages"] if row["score"] is not None]
manifests = {row["task"]: plan.pipeline(row["task"], row["mode"], row["round"]).manifest() for row in scored}
for row in scored:
    apart = "clearly better than" if beats_random(manifests[row["task"]]) else "not clearly apart from"
    print(f"{row['task']}: target {row['status'].replace('_', ' ')}, {apart} random play")
for row in report["stages"]:
    for failure in row["failures"]:
        print(f"{row['task']}, mode {failure['mode']}, round {failure['round']}: {failure['reason']}")

# %%
plots.scores([manifests[row["task"]] for row in scored if row["mode"] != "simulation"])

# %% [markdown]
# ![A panel for each task: mean return of random play and of the agent as bars, each with its interval, and the target as a dashed line](../assets/figures/07_scores.png)
#
# *What to expect: drawn at budget `laptop`.*

# %% [markdown]
# **Explain.** Each panel has its own scale: a point in Pong is not a point in CarRacing. Look first whether the two black intervals
# overlap. If they do not, the agent is clearly apart from chance. If they do, this strict rule leaves it open, however different the
# bars look. Expect that at `smoke`, which trains for seconds.

# %% [markdown]
# ## 3. Where the time went
# **Predict.** Which stage is the most expensive one?

# %%
stages = dict.fromkeys(stage for m in manifests.values() for stage in m["minutes"])
minutes = {stage: sum(m["minutes"].get(stage, 0.0) for m in manifests.values()) for stage in stages}
print(", ".join(f"{stage}: {spent:.1f} minutes" for stage, spent in minutes.items()))
plots.bars(minutes, "minutes", "All tasks together, before the measuring")

# %%
for name, manifest in manifests.items():
    steps = {key: value for key, value in manifest["real_steps"].items() if key != "total"}
    print(f"{name}: {'simulated' if manifest['mode'] == 'simulation' else 'real'} decisions {', '.join(f'{key} {value}' for key, value in steps.items())}")

# %% [markdown]
# **Explain.** V and M learn, again and again, from the data that a round has collected once. C asks for new decisions all the time. An agent that learns in its
# dream moves cost from the second kind to none at all, which is why dreams are worth the trouble.

# %% [markdown]
# ## 4. When things go wrong
# A long run meets everything sooner or later: a library crashes, the memory is full, a process hangs and says nothing. Here is a
# curriculum whose trainings only pretend. In mode `full` Breakout is killed as the system kills when memory runs out, and Pong falls
# asleep. Modes, from the best down (notebook 01): `full`, `gym_only` (no torch), `simulation` (no real environments either). One mode
# lower both succeed.
#
# It is also how you write a curriculum of your own: any of these keys, in a YAML file, for `wm curriculum --config`.
#
# **Predict.** How many tries will there be, and what will the table say of each task?

# %%
folder = plan.run_dir / "trouble"
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)
(folder / "mine.yaml").write_text("""
curriculum:
  stages: [breakout, pong]
  timeout_seconds: 1
  max_retries: 0
  targets: {breakout: 5}
""")
TROUBLE = {
    "breakout": "import os; print('asking for much memory', flush=True); os.kill(os.getpid(), 9)",
    "pong": "import time; print('good night', flush=True); time.sleep(1000)",
}
FINE = """
import json, sys
score = {"mean": 7.0, "ci95": [6.0, 8.0], "episodes": 2}
manifest = {"mode": "gym_only", "score": score, "real_steps": {"total": 0}, "minutes": {}}
json.dump(manifest, open(sys.argv[1], "w"))
"""


def pretend(plan, attempt) -> list[str]:
    """The command of a try, which otherwise is `wm train`."""
    return [sys.executable, "-c", TROUBLE[attempt.task] if attempt.mode == "full" else FINE, str(attempt.result)]


trouble = run_curriculum(Curriculum.open(budget, folder, seed, folder / "mine.yaml", "full"), pretend, say=print)
print(report_table(trouble))

# %%
for row in trouble["stages"]:
    for failure in row["failures"]:
        print(f"{row['task']}: {failure['kind']}: {failure['reason']}; its last words: {failure['tail']!r}")

# %% [markdown]
# **Explain.** Each try had a process of its own, so its end is not ours. What may be bad luck is tried once more, and goes on from
# its last checkpoint; what fails twice is carried on one mode lower, and the table says in which mode a score was made. A score from
# a *simulated* world is shown without a target: it is no Pong, and no claim about Pong.

# %% [markdown]
# ## 5. Exercises
# Write the function in place of `return None`, run the cell and the one below it.

# %% [markdown]
# ### Exercise 7.1 · What comes next?
# (10 minutes, easy)
# Given what was tried for one task, a list of results with `score` (a number, or `None` where the try failed), say what follows:
# `"reached"`, `"again"` for another try (the same round after a failure, a further one after a score that missed), or
# `"not_reached"`. There may be `max_retries` further rounds after the first; here no two tries in a row fail, so that a failure is
# always worth another go.


# %%
def next_try(results: list[dict], target: float, max_retries: int) -> str | None:
    """What follows from the results of one task, at least one of them."""
    return None  # your code here


# %%
print(check_next_try(next_try))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Count the tries that have a score: a failed one was no further round.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def next_try(results: list[dict], target: float, max_retries: int) -> str:
#     """What follows from the results of one task, at least one of them."""
#     last = results[-1]["score"]
#     if last is None:
#         return "again"
#     if last >= target:
#         return "reached"
#     measured = sum(result["score"] is not None for result in results)
#     return "again" if measured <= max_retries else "not_reached"
# ```
#
# The library's own is `wm_lib.curriculum.next_try`, which also knows modes and hopeless failures.
#
# </details>

# %% [markdown]
# ### Exercise 7.2 · A line cut short
# (10 minutes, medium)
# The power failed while a line was written. Read what is whole: a line is finished when its newline is there. A damaged line may
# also stand in the middle; leave it out and go on. `data` is the file's bytes.


# %%
def read_events(data: bytes) -> list[dict] | None:
    """The records of a journal of JSON lines that may have been cut short while it was written."""
    return None  # your code here


# %%
print(check_read_events(read_events))

# %% [markdown]
# <details><summary>Hint</summary>
#
# What does `split` leave behind the last newline? And `json.loads` raises a `ValueError` for what is no JSON.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def read_events(data: bytes) -> list[dict]:
#     """The records of a journal of JSON lines that may have been cut short while it was written."""
#     records = []
#     for line in data.split(b"\n")[:-1]:
#         try:
#             records.append(json.loads(line))
#         except ValueError:
#             continue
#     return records
# ```
#
# The library's own, which reads a file, is `wm_lib.journal.read_journal`.
#
# </details>

# %% [markdown]
# ### Exercise 7.3 · When to give up
# (20 minutes, hard)
# A watchdog looks at a process again and again, and notes the seconds since its last look, the bytes that the process has
# written so far, and whether it was held in the meantime. Say `"timeout"`
# if it has taken more than `timeout` seconds, `"silence"` if it has written
# nothing for more than `silence` seconds, whichever comes first, and otherwise `"fine"`. Time that it is held does not count.


# %%
def watch(looks: list[tuple[float, int, bool]], timeout: float, silence: float) -> str | None:
    """What a watchdog says after looks at a process: (seconds since the last look, bytes written so far, held)."""
    return None  # your code here


# %%
print(check_watch(watch))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Keep a clock of your own that stands still while the process is held, and remember what it said at the last new byte.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def watch(looks: list[tuple[float, int, bool]], timeout: float, silence: float) -> str:
#     """What a watchdog says after looks at a process: (seconds since the last look, bytes written so far, held)."""
#     spent = heard = 0.0
#     size = 0
#     for passed, written, held in looks:
#         if held:
#             continue
#         spent += passed
#         if written != size:
#             heard, size = spent, written
#         if spent > timeout:
#             return "timeout"
#         if spent - heard > silence:
#             return "silence"
#     return "fine"
# ```
#
# In the library it is `_watch` in `wm_lib.attempts`.
#
# </details>

# %% [markdown]
# ## 6. Check yourself
# 1. **Why does each task have a process of its own?**
#    <details><summary>Answer</summary>
#
#    What kills or hangs it, and the memory it holds, end with it; the curriculum lives on.
#    </details>
# 2. **Why is a line on the disk before the next step is taken?**
#    <details><summary>Answer</summary>
#
#    Otherwise a crash would take with it the knowledge of what was done.
#    </details>
# 3. **Why is a failed try repeated once and no more in the same mode?**
#    <details><summary>Answer</summary>
#
#    Bad luck passes; what fails twice alike will most likely fail again, and costs the time of other tasks.
#    </details>
# 4. **Two intervals overlap. Is the agent no better than random play?**
#    <details><summary>Answer</summary>
#
#    That does not follow. Intervals that do not overlap are a strict test; two that overlap a little may still differ, which the
#    interval of the difference would show. More episodes make all of them narrower.
#    </details>
# 5. **Why is a score from a simulated world shown without a target?**
#    <details><summary>Answer</summary>
#
#    The target belongs to the real game, and the simulated one is another game.
#    </details>

# %% [markdown]
# ## Summary

# %%
reached = [row["task"] for row in report["stages"] if row["status"] == "reached"]
failed = [row["task"] for row in report["stages"] if row["status"] == "failed"]
print(f"{len(scored)} of {len(plan.configs)} tasks have a score, {len(failed)} failed; target reached: {', '.join(reached) or 'none'}")

# %% [markdown]
# - One program, four worlds.
# - A score needs an interval, a baseline and its cost beside it.
# - A long run has to expect crashes, and to write down what it knows before it goes on.
#
# ## Next
# [08 Results](08_results.ipynb): what did it reach, and how do we know?
