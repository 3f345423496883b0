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
# # 02 Data collection
# **What should an agent that knows nothing look at?**
#
# *Minutes on two cores: smoke 0.3, laptop 4.1.*
#
# ## Goals
# - Collect the frames from which V and M will learn.
# - See what random play covers of a world and what it never sees.
# - Measure what random play earns: the line every agent has to be above.
#
# ## Before you start
# [00 Start here](00_start_here.ipynb). If a cell fails on an import, [01 Diagnostics](01_diagnostics.ipynb) says what to type.

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
import numpy as np

from wm_lib import gates
from wm_lib.course import films, plots
from wm_lib.course.exercises.data import check_hold_out, check_is_blank, check_same_after
from wm_lib.evaluation import evaluate, random_maker
from wm_lib.pipeline import Pipeline
from wm_lib.report import interval
from wm_lib.rollouts import StickyRandom
from wm_lib.tasks import ACTION_NAMES
from wm_lib.worlds.envs import make_env

run = Pipeline.open(task, budget, run_dir, seed)
run = run.rounds[0]  # the first data, of random play
rng = np.random.default_rng(seed)
print(f"{run.task.name}: {run.directory}")

# %% [markdown]
# ## 1. Play and keep everything
# The stage `collect` plays many games side by side and writes what happened in *shards*: frames, actions, rewards, ends. If
# it is interrupted, it goes on at the shard where it stopped.

# %%
run.build("collect")
data, facts = run.rollouts(), run.facts("collect")
print(f"{data.num_sequences} stretches of {data.length} decisions: {data.num_frames} frames, {facts['minutes']:.2f} minutes")
print(f"{int(data.first.sum())} episodes begin in them, {facts['facts']['num_episodes']} come to their end")

# %% [markdown]
# **Predict.** The world is reset at the start of every episode. How different are those starts?

# %%
starts = np.flatnonzero(data.first)
shown = np.sort(rng.choice(starts, min(16, len(starts)), replace=False))
print(f"{len(np.unique(data.gather(starts), axis=0))} different first frames in {len(starts)} episodes")
plots.frame_grid(data.gather(shown), title="First frames")

# %% [markdown]
# And so one of the episodes goes on:

# %%
moments = np.linspace(0, data.length - 1, 16).astype(int)
print(f"{len(moments)} frames of the first stretch, from its decision 0 to {moments[-1]}")
plots.frame_grid(data.gather(moments), title="One stretch of play")

# %% [markdown]
# ![Sixteen small frames of one stretch of random play in CarRacing, in reading order](../assets/figures/02_play.png)
#
# *What to expect: drawn at budget `laptop`.*

# %% [markdown]
# **Explain.** Where all starts look alike, variety has to come from the play itself. Where they differ, no single background
# fits them all, which V will have to know. (CarRacing begins high above its track and zooms in during the first second.)

# %% [markdown]
# ## 2. What was done
# Independent random actions cancel each other: a car that steers left and right ten times a second drives nowhere. So our
# random player is *sticky*: it mostly keeps its last action. (Not in LunarLander, where held actions make the ship tumble: there it
# draws anew each time.)
#
# **Predict.** Will the sticky player choose some actions more often than others?

# %%
action = data.action
same = (action[:, 1:] == action[:, :-1])[~data.first[:, 1:]].mean()
print(f"an action is the same as the one before in {100 * same:.0f} % of the decisions")
plots.action_histogram(action, [label.replace(", ", "\n") for label in ACTION_NAMES[run.task.name]])

# %% [markdown]
# **Explain.** Over a long time every action is equally likely; in a short stretch it is not. Being sticky changes the *order*,
# not the share.

# %% [markdown]
# ## 3. What was seen
# A pixel that never changes teaches nothing. Here is how often each one differs clearly from its usual value, for the sticky
# player and for a trembling one that rolls the dice every time.
#
# **Predict.** Which of them gets further on a line? Does it see more of this world for that?

# %%
def changed(frames: np.ndarray, threshold: int = 25) -> np.ndarray:
    """Share of the frames in which each pixel differs from its median by more than `threshold` of 255, (64, 64)."""
    difference = np.abs(frames - np.median(frames, axis=0))
    return (difference.max(axis=-1) > threshold).mean(axis=0)


num_envs, num_decisions = min(8, run.config.collect.num_envs), 64
seen = {}
for name, repeat in {"sticky": 0.9, "trembling": 0.0}.items():
    player = StickyRandom(run.task.num_actions, num_envs, seed, repeat)
    recording = films.record(make_env(run.task, num_envs, seed), player, num_decisions)
    seen[name] = changed(recording.frames.reshape(-1, 64, 64, 3))
    print(f"{name:>10}: a pixel is away from its usual value in {100 * seen[name].mean():.1f} % of the frames")
    walker = StickyRandom(3, 200, seed, repeat)  # a step to the left, none, or one to the right
    place = np.cumsum([walker(None, np.full(200, t == 0)) - 1 for t in range(num_decisions)], axis=0)
    print(f"{'':>10}  on a line it ends {np.abs(place[-1]).mean():.0f} steps from where it began")
plots.maps(seen)

# %%
sample = data.gather(np.sort(rng.choice(data.num_frames, min(1000, data.num_frames), replace=False)))
cover = changed(sample)
print(f"in the collected data {100 * (cover > 0).mean():.0f} % of the pixels change at least once")
plots.maps({"usual picture": np.median(sample, axis=0).astype(np.uint8), "how often it differs": cover})

# %% [markdown]
# **Explain.** Held actions carry a player several times as far. Whether more pixels change for that depends on the world: a paddle
# that has come to its end stays there. Bright places change often; where the camera goes along, as in CarRacing, that is nearly
# everywhere but at the car. What a random player never reaches stays dark, and no V trained on these frames can know it: a car that
# spins on the grass sees little of the road. Better players make better data, which is why one collects again once C can play.

# %% [markdown]
# ## 4. What random play earns
# Now whole episodes in the reference environment, each with its own seed. These are scores, measured as all scores in this
# course are.
#
# **Predict.** Write down a number before you run it.

# %%
evaluation = run.config.evaluation
score = evaluate(run.task, random_maker(run.task), min(8, evaluation.random_episodes), evaluation.seed)
print(f"random play: {interval(score)} on average over {score['episodes']} episodes; the target is {run.task.target:g}")
returns = {str(s): r for s, r in zip(score["seeds"], score["returns"], strict=True)}
plots.bars(returns, "return", f"Random play in {run.task.name}, by seed")

# %% [markdown]
# **Explain.** The mean of a few episodes is itself luck. Its *95 % interval*, in brackets, says how much: made like this again and
# again, 19 in 20 hold the true mean (notebook 08). We say that an agent has learned something when its interval lies wholly above that
# of random play. Being above one lucky episode is not enough.

# %% [markdown]
# ## 5. Before you go on: the checklist
# The course checks every stage before it builds on it; the *gates* stop a training that would only waste your evening. Here they are
# for the data. Tick them off by eye first: are there pictures, do they change, and are there enough games to hold some back?
#
# **Predict.** Which one is the closest call?

# %%
print(gates.report(run.gates("collect")))

# %% [markdown]
# **Explain.** A renderer without a screen may give black frames without a word, and everything after it would train happily on nothing.
# At budget smoke a failed gate is only reported; at laptop and full the training stops, and `--force` goes on, with a mark on every score.

# %% [markdown]
# ## 6. What goes wrong when frames are split at random
# A part of the data is held out, to test with. The obvious way is to draw frames at random. Here is the stupidest model there is:
# it remembers all
# frames that it was trained on, and answers with the most similar one. It is tested on the same frames twice: once it may remember all
# other frames, once only those of other stretches of play. It should be equally bad.
#
# **Predict.** Will it?

# %%
few = min(10, data.num_sequences)
flat = np.arange(few * data.length)
stretch = flat // data.length
small = data.gather(flat)[:, ::4, ::4].reshape(len(flat), -1).astype(np.float32)
test = rng.choice(len(flat), max(1, min(50, len(flat) // 10)), replace=False)
at_random = ~np.isin(flat, test)

nearest = {"frames at random": [], "whole stretches": []}  # squared distance of each test frame to the most similar one
for t in test:
    distance = np.square(small - small[t]).mean(axis=1)
    nearest["frames at random"].append(distance[at_random].min())
    nearest["whole stretches"].append(distance[at_random & (stretch != stretch[t])].min())
errors = {name: float(np.sqrt(np.mean(squares))) for name, squares in nearest.items()}
print(f"error of the model that only remembers, of 255: {', '.join(f'{name} {error:.1f}' for name, error in errors.items())}")
plots.bars(errors, "error, of 255", "The same model, tested in two ways")

# %% [markdown]
# ![Two bars: the error of a model that only remembers is lower when frames are held out at random than when whole stretches are](../assets/figures/02_split.png)
#
# *What to expect: drawn at budget `smoke`; nothing has learned anything at that budget.*

# %% [markdown]
# **Explain.** Next to nearly every frame held out at random, its neighbours a moment before and after were trained on: the test
# *leaks*. Of two numbers for the same model the lower one is the lie. Where all games look alike, the two are close together; they
# are furthest apart where each episode has scenery of its own. The course always holds out whole stretches
# (`wm_lib.rollouts.split_sequences`).

# %% [markdown]
# ## 7. Exercises
# Each has a function to fill in and a cell that says how you fare. Run them in any order; nothing later depends on them.

# %% [markdown]
# ### Exercise 2.1 · Frames that show nothing
# (8 minutes, easy) A renderer that failed shows black, or grey, or any other single colour. Find such frames, give or take
# `tolerance` of 255 in each colour, for what compression may leave. A single pixel of ball is something to see.

# %%
def is_blank(frames: np.ndarray, tolerance: int = 10) -> np.ndarray | None:
    """bool (n,), of frames uint8 (n, height, width, 3)."""
    return None


# %%
print(check_is_blank(is_blank))

# %% [markdown]
# <details><summary>Hint</summary>
#
# For each frame and each of the three colours, compare the brightest pixel with the darkest. A frame all red is of a single colour.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def is_blank(frames: np.ndarray, tolerance: int = 10) -> np.ndarray:
#     """Whether each frame, uint8 (n, height, width, 3), is of a single colour, give or take `tolerance` of 255."""
#     darkest, brightest = frames.min(axis=(1, 2)).astype(int), frames.max(axis=(1, 2))
#     return (brightest - darkest).max(axis=1) <= tolerance
# ```
#
# The gate of section 5 does the same, and looks for frames that stand still: `wm_lib.gates.frames_are_alive`.
#
# </details>

# %% [markdown]
# ### Exercise 2.2 · How long is an action held?
# (12 minutes, medium) In what share of the pairs of decisions, `k` apart, is the action the same? Only pairs within one episode
# count:
# `first` says where episodes begin.

# %%
def same_after(action: np.ndarray, first: np.ndarray, k: int) -> float | None:
    """Share of pairs with the same action, of action and first (sequences, time), k at least 1."""
    return None


# %%
print(check_same_after(same_after))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Number the episodes of each sequence: `first.cumsum(axis=1)`. Two decisions are of the same episode when their numbers are equal.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def same_after(action: np.ndarray, first: np.ndarray, k: int) -> float:
#     """Share of pairs of decisions, k apart and of the same episode, that have the same action.
#
#     Args:
#         action: Integers (sequences, time).
#         first: bool (sequences, time), true at the first decision of an episode.
#         k: At least 1, less than `time`.
#     """
#     episode = first.cumsum(axis=1)
#     within = episode[:, k:] == episode[:, :-k]
#     return float((action[:, k:] == action[:, :-k])[within].mean())
# ```
#
# A player that keeps its action with probability p, and otherwise draws one of n, is the same k decisions later with p^k + (1 −
# p^k) / n. Try
# `same_after(data.action, data.first, k)` for a few k.
#
# </details>

# %% [markdown]
# ### Exercise 2.3 · A test that does not leak
# (15 minutes, hard) Frames are numbered: frame t of sequence s is s · `length` + t. Give the numbers to train on and those to
# test with. Hold out whole sequences, about a tenth of them and at least one; use every frame once.

# %%
def hold_out(num_sequences: int, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers of the frames to train on, and of those to test with; two or more sequences."""
    return None


# %%
print(check_hold_out(hold_out))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Integer division by `length` takes a frame's number to its sequence.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def hold_out(num_sequences: int, length: int) -> tuple[np.ndarray, np.ndarray]:
#     """Frames s * length + t to train on and to test with: every tenth sequence is held out, at least one."""
#     index = np.arange(num_sequences * length)
#     held = index // length % 10 == min(5, num_sequences - 1)
#     return index[~held], index[held]
# ```
#
# </details>

# %% [markdown]
# ## 8. Check yourself
# Answer before you unfold.
#
# 1. **Why does the random player hold its actions in most of the tasks?**
#
# <details><summary>Answer</summary>
#
# Actions drawn anew at every decision cancel each other. Held ones carry the player somewhere.
#
# </details>
#
# 2. **Does holding actions make some of them more frequent?**
#
# <details><summary>Answer</summary>
#
# Not over a long time: each new one is drawn from all alike. Only the order changes.
#
# </details>
#
# 3. **Frames are black, and yet all stages run through. What would V's loss look like?**
#
# <details><summary>Answer</summary>
#
# Splendid: black frames are drawn without error. That is why the data is checked before anything is trained on it.
#
# </details>
#
# 4. **Why do V and M hold out the same sequences?**
#
# <details><summary>Answer</summary>
#
# M's held-out stretches would otherwise be ones on which V was trained. Their latents would be better than those of new play, and
# M's test would leak through V.
#
# </details>
#
# 5. **An agent earns more than random play did in one lucky episode. Has it learned something?**
#
# <details><summary>Answer</summary>
#
# That cannot be said. Compare its 95 % interval, over many episodes, with that of random play.
#
# </details>

# %% [markdown]
# ## Summary

# %%
print(f"{data.num_frames} frames of {run.task.name} with actions, rewards and ends: {run.directory / 'collect'}")
print(f"random play earns {score['mean']:.1f}; {facts['facts']['real_steps']} real steps were spent on the data")

# %% [markdown]
# - Data decides what a world model can know.
# - Held actions carry a random player further; whether it sees more depends on the world.
# - Random play sets the line to beat.
#
# ## Next
# [03 VAE](03_vae.ipynb): how does a frame become a few numbers without losing the ball?
