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
# # 05 Controller
# **How small can the part that acts be?**
#
# *Minutes on two cores: smoke 0.3, laptop 11.*
#
# ## Goals
# - Train C on what V and M tell it, and watch it play.
# - See what C sees: numbers, no pixels.
# - Compare two ways to learn: following gradients (PPO), and evolution (CMA-ES, the paper's).
#
# ## Before you start
# [04 MDN-RNN](04_mdn_rnn.ipynb) made V and M; if it has not run yet, this notebook does it. You know what a policy and a return
# are.

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
import shutil

import numpy as np

from wm_lib import experiments
from wm_lib.control.agent import Agent
from wm_lib.control.controller import num_params as num_linear
from wm_lib.control.evolution import play_once, train_evolution
from wm_lib.course import cma_2d, films, plots, widgets
from wm_lib.course.exercises.controller import (
    check_advantages,
    check_draw_action,
    check_error_of_difference,
    check_num_params,
)
from wm_lib.events import read_scalars
from wm_lib.pipeline import Pipeline
from wm_lib.tasks import ACTION_NAMES
from wm_lib.worlds.envs import make_env

run = Pipeline.open(task, budget, run_dir, seed)
print(f"{run.task.name}: {run.directory}")

# %% [markdown]
# ## 1. Learning to act
# V and M are frozen now. C gets the latest few *z* and the memory *h*, and answers with a preference for each action. These
# preferences are called *logits*; a softmax makes probabilities of them. C learns in the real world, by trial and error. With PPO
# (proximal policy optimisation) it plays a stretch, makes the actions that turned out better than expected a little likelier, by
# gradients and never by much at once, and plays again. What was expected is said by a second network, the *critic*.
#
# **Predict.** Will the return rise evenly, or in jumps?

# %%
run.build("controller")
controller, world_model, config = run.controller(), run.world_model(), run.config.controller
facts = run.facts("controller")
print(f"{facts['facts']['real_steps']} real decisions, {facts['minutes']:.2f} minutes, learned by {config.type}")
scalars = read_scalars(run.directory / "controller")
for name, (steps, values) in scalars.items():
    print(f"{name}: {values[0]:.4g} at {steps[0]}, {values[-1]:.4g} at {steps[-1]}")
names = [name for name in ("return", "mean_return", "best_return") if name in scalars]
if not names:
    print("nothing to draw: no episode came to its end while training")
plots.learning_curves(scalars, {"return while training": names}, "decision" if config.type == "ppo" else "generation")

# %% [markdown]
# **Explain.** Each point is a mean over the last episodes that ended, played while learning and with actions drawn by chance. It shows
# that something is learned. It is not a score: that comes in [notebook 07](07_curriculum.ipynb). An empty panel means that no episode
# came to its end. The first point knows only episodes that ended early, and so does the first one after each checkpoint
# (`block_steps`), where the environments are made anew: a dip there is no forgetting.

# %% [markdown]
# ## 2. What C sees
# **Predict.** Which part of the agent has the most parameters, V, M or C? And how few would a *linear* C have?

# %%
sizes = {
    "V": sum(p.numel() for p in world_model.vae.parameters()),
    "M": sum(p.numel() for p in world_model.mdn_rnn.parameters()),
    "C": sum(w.size + b.size for w, b in zip(controller.weights, controller.biases, strict=True)),
    "a linear C": num_linear(world_model.feature_dim, run.task.num_actions),
}
now, memory = world_model.z_dim, world_model.mdn_rnn.rnn_size
print(f"C reads {world_model.feature_dim} features: z ({now}), h ({memory}), and {world_model.feature_dim - now - memory} of the {config.recent_z - 1} z before")
print(", ".join(f"{name}: {size}" for name, size in sizes.items()), "parameters")
plots.bars(sizes, "parameters", "How large each part is (mind the scale)", log=True)

# %%
num_decisions = 100
rngs = [np.random.default_rng(seed)] if run.task.sampled else None
agent = Agent(world_model, controller, 1, rngs)
watched = []


def act_and_watch(obs: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Let the agent act, and keep the features it acted on."""
    h = np.where(first[:, None], np.float32(0), agent.h)
    watched.append(world_model.features(world_model.encode(obs), h)[0])
    return agent(obs, first)


recording = films.record(make_env(run.task, 1, seed), act_and_watch, num_decisions)
print(f"{num_decisions} decisions of one game; each column is all that C knew at that moment")
plots.over_time(np.array(watched), "decision", "feature", "What C sees: the latest z at the top, h below")

# %% [markdown]
# ![A picture of numbers, 100 decisions wide: each row is one feature that C reads, the latest z at the top and the memory h below](../assets/figures/05_features.png)
#
# *What to expect: drawn at budget `smoke`; nothing has learned anything at that budget.*

# %% [markdown]
# **Explain.** Most of the agent's numbers are in V and M (those of V's half that draws, too, which C does not need). That is the idea
# of the paper: keep the part that must learn by trial and error small, and let the large parts learn from data, where every frame
# teaches. PPO's gradients do not mind if C is a small network; the paper's C is the last bar, few enough numbers for evolution.

# %% [markdown]
# ## 3. Watching it play
# On the left the world, on the right what V makes of it. That and its memory *h* are all the agent has.
#
# **Predict.** Which action will it choose most?

# %%
seen = world_model.decode(world_model.encode(recording.frames[:, 0]))
print(f"the agent was paid {recording.reward.sum():.1f} in these {num_decisions} decisions")
films.film(np.stack([recording.frames[:, 0], seen], axis=1), f"The trained agent in {run.task.name}: the world, and what V sees")

# %%
used = np.bincount(recording.action.ravel(), minlength=run.task.num_actions)
labels = ACTION_NAMES[run.task.name]
print("actions chosen:", ", ".join(f"{label}: {n}" for label, n in zip(labels, used, strict=True)))
plots.action_histogram(recording.action, labels)

# %% [markdown]
# **Explain.** An action that is hardly ever chosen is not missing: C may have found that it does not pay, or that others do the same.

# %% [markdown]
# ## 4. Evolution instead
# The paper's C is linear, and no gradient is used: CMA-ES tries a population of controllers, moves towards the better ones and
# learns in which directions it pays to try (above a thousand parameters only how far to go along each of them: for all
# directions there are never enough games). Every candidate of a generation plays the same games, all at once.
#
# **Predict.** In this short a run, will the best of a generation be far ahead of its mean? Would you trust the best?

# %%
short = config.model_copy(
    update={
        "type": "original",
        "num_generations": min(5, config.num_generations),
        "max_decisions": min(100, config.max_decisions or 100),
    }
)
folder = run.directory / "evolution"
shutil.rmtree(folder, ignore_errors=True)
evolved = train_evolution(world_model, run.task, short, seed=seed, directory=folder, log_dir=folder)
print(f"{evolved.meta['real_steps']} real decisions")
print(f"the controller in the middle of the last population earns {evolved.meta['mean_return']:.1f} in {short.max_decisions} decisions")

# %%
scalars = read_scalars(folder)
print(f"generation by generation, best: {scalars['best_return'][1].round(1)}, mean: {scalars['mean_return'][1].round(1)}")
plots.learning_curves(scalars, {f"return in {short.max_decisions} decisions": ["best_return", "mean_return"]}, "generation")

# %% [markdown]
# ![Two curves over the generations of evolution: the return of the best candidate lies above the mean of all](../assets/figures/05_evolution.png)
#
# *What to expect: drawn at budget `laptop`.*

# %% [markdown]
# **Explain.** The best of many noisy trials owes much of its lead to luck. That is why we keep the *mean* of the final distribution:
# one controller, the middle of the cloud, played anew. It is not the curve *mean return*, which is the average of all candidates. Each
# of them is the middle plus noise, so the middle may earn more than they do. A few generations prove nothing; the paper ran hundreds. Set `controller.type: original` in a configuration file to train
# the whole stage that way.

# %% [markdown]
# With thousands of parameters nobody can watch it. With two one can: here CMA-ES looks for the lowest point of a curved valley.
#
# **Try.** Step through the generations. When is the ellipse long, and which way does it point? Then begin with a much smaller sigma.

# %%
widgets.show(cma_2d.widget(seed))

# %% [markdown]
# ## 5. What does C need?
# Change one thing at a time and train again, from nothing, with as many real decisions: that tells what it is worth. This is LunarLander
# on V and M of the first round of a `full` training; `wm experiment --task lunar-lander` does it. *As it is* means the latest four *z* and *h*,
# two hidden layers, PPO.
#
# **Predict.** Which will cost more, to take *z* away or *h*? And how far behind is a linear C?

# %%
random_play, *rows = experiments.shipped("lunar-lander", ["features", "size", "method"])
print(experiments.table([random_play, *rows]))
measured = {row.variant: (row.score, row.ci_low, row.ci_high) for row in rows}
plots.intervals(measured, "score (dashed: random play)", random_play.score, "LunarLander: one change at a time")

# %% [markdown]
# **Explain.** The whiskers are over a hundred games of one training each: another training of the same kind may lie elsewhere, so look for gaps much
# wider than they are. One *z* alone is a still picture: it does not say how fast the ship falls, and C flies hardly better than chance.
# The latest four of them tell something of speed; *h* tells it better, and beside *h* the earlier *z* add nothing. Even *h* alone flies, one decision late.
# An M that was never trained is a memory, too, if a jumbled one, and C makes something of it: part of what *h* is worth is only that it remembers.
# A linear C is behind by half, and CMA-ES, with as many decisions as PPO, has hardly begun: it learns from one number a game.
# It would need many times as many, and that is what dreams are for.

# %% [markdown]
# ## 6. What goes wrong: keep the best
# It is tempting to keep the candidate with the highest return. Here are several copies of *one* controller, the one that has just
# evolved. Nothing sets them apart but the game that each of them meets. We keep "the best" and let all play once more.
#
# **Predict.** Does the champion of the first games lead in the second ones?

# %%
num_twins = min(8, run.config.controller.population_size)


def play_twins(first_seed: int) -> np.ndarray:
    """Returns of copies of one controller, each in a game of its own."""
    rngs = [np.random.default_rng([first_seed, i]) for i in range(num_twins)] if run.task.sampled else None
    env = make_env(run.task, num_twins, first_seed)
    try:
        return play_once(env, Agent(world_model, evolved, num_twins, rngs), short.max_decisions)[0]
    finally:
        env.close()


before, again = play_twins(seed), play_twins(seed + 1000)
champion = before.argmax()
print(f"first games:  {before.round(1)}, mean {before.mean():.1f}, the best earns {before[champion]:.1f}")
print(f"second games: {again.round(1)}, mean {again.mean():.1f}, the same one earns {again[champion]:.1f}")

# %% [markdown]
# **Explain.** The champion was chosen for its luck, and luck does not come again; what its record promises is too much, and the more
# candidates there are, the more so. If all returns are equal, these games are too short to tell anybody apart, which is no better.
# Two remedies: let all candidates of a generation play the same games, and measure anew whatever was chosen.

# %% [markdown]
# ## 7. Exercises
# Write the function in place of `return None`, run the cell and the one below it.

# %% [markdown]
# ### Exercise 5.1 · How small is C?
# (5 minutes, easy)
# The paper's C is *linear*: logits = x W + b, with a bias for every action. How many numbers does evolution have to find?
# The paper's C for CarRacing reads 288 features, has three outputs, and 867 numbers.


# %%
def num_params(feature_dim: int, num_actions: int) -> int | None:
    """Number of weights and biases of a linear controller."""
    return None  # your code here


# %%
print(check_num_params(num_params))

# %% [markdown]
# <details><summary>Hint</summary>
#
# W has a row for each feature and a column for each action.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def num_params(feature_dim: int, num_actions: int) -> int:
#     """Number of weights and biases of a linear controller."""
#     return (feature_dim + 1) * num_actions
# ```
#
# It is the library's own, `wm_lib.control.controller.num_params`.
#
# </details>

# %% [markdown]
# ### Exercise 5.2 · An action by chance
# (10 minutes, medium)
# Turn logits into an action with one uniform number: lay the probabilities end to end from 0 to 1, and see in whose
# part the number falls. Logits may be large; your function must not overflow.


# %%
def draw_action(logits: np.ndarray, uniform: float) -> int | None:
    """An action of the softmax of logits (num_actions,), from a uniform number in [0, 1)."""
    return None  # your code here


# %%
print(check_draw_action(draw_action))

# %% [markdown]
# <details><summary>Hint</summary>
#
# A softmax does not change if the same number is taken off all logits. `np.cumsum` gives the bounds.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def draw_action(logits: np.ndarray, uniform: float) -> int:
#     """An action of the softmax of logits (num_actions,), from a uniform number in [0, 1)."""
#     weights = np.exp(logits - logits.max())
#     bounds = np.cumsum(weights / weights.sum())
#     return int((uniform >= bounds[:-1]).sum())
# ```
#
# The library does it for a whole batch at once: `wm_lib.control.controller.choose`.
#
# </details>

# %% [markdown]
# ### Exercise 5.3 · Luck that is shared
# (10 minutes, medium)
# Two candidates have played the *same* episodes. How sure is the difference of their means? Say its standard error. A
# hard episode is hard for both; that is why a generation shares its seeds.


# %%
def error_of_difference(a: np.ndarray, b: np.ndarray) -> float | None:
    """Standard error of mean(a) - mean(b), returns (episodes,) of two candidates in the same episodes."""
    return None  # your code here


# %%
print(check_error_of_difference(error_of_difference))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Take the difference in every episode first. What is left is one sample, and its mean has a standard error.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def error_of_difference(a: np.ndarray, b: np.ndarray) -> float:
#     """Standard error of mean(a) - mean(b), returns (episodes,) of two candidates in the same episodes."""
#     return float((a - b).std(ddof=1) / np.sqrt(len(a)))
# ```
#
# With seeds of their own, the variances of both would add up, the luck of the episodes included.
#
# </details>

# %% [markdown]
# ### Exercise 5.4 · Who deserves the reward?
# (20 minutes, hard)
# PPO wants to know how much better than expected an action was. `value[t]`, v_t for short (not our V), is the return that the critic
# expects from row t on; γ below 1 (`gamma`) makes later rewards count less. *GAE* (generalised advantage estimation) sums the surprises
# δ_t = r_t + γ v_{t+1} − v_t that follow, each step further weighing γλ times as much; λ (`lam`) says how far to look. `done[t]` says
# that the episode ended with `reward[t]`: what comes in the next row is another game.


# %%
def advantages(
    reward: np.ndarray, value: np.ndarray, done: np.ndarray, last_value: float, gamma: float, lam: float
) -> np.ndarray | None:
    """Advantages (time,) by GAE; `done` is true where an episode ended, `last_value` belongs to what follows."""
    return None  # your code here


# %%
print(check_advantages(advantages))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Go from the last row to the first: A_t = δ_t + γλ A_{t+1}. Where done[t] is true, two things must not come back from t + 1.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def advantages(
#     reward: np.ndarray, value: np.ndarray, done: np.ndarray, last_value: float, gamma: float, lam: float
# ) -> np.ndarray:
#     """Advantages (time,) by GAE; `done` is true where an episode ended, `last_value` belongs to what follows."""
#     found, following = np.zeros(len(reward)), 0.0
#     for t in reversed(range(len(reward))):
#         next_value = value[t + 1] if t + 1 < len(value) else last_value
#         delta = reward[t] + gamma * next_value * (1 - done[t]) - value[t]
#         following = delta + gamma * lam * (1 - done[t]) * following
#         found[t] = following
#     return found
# ```
#
# </details>

# %% [markdown]
# ## 8. Check yourself
# 1. **Why may C be so small?**
#    <details><summary>Answer</summary>
#
#    V and M have already made few and telling numbers of the frames and of the past.
#    </details>
# 2. **Why do all candidates of a generation play the same games?**
#    <details><summary>Answer</summary>
#
#    So that the luck of the games falls out of the comparison; only the difference counts.
#    </details>
# 3. **Why does the next generation get new ones?**
#    <details><summary>Answer</summary>
#
#    Otherwise evolution would learn these few games by heart.
#    </details>
# 4. **Why is the mean of the final distribution kept, and not the best candidate?**
#    <details><summary>Answer</summary>
#
#    The best of many noisy trials is chosen for its luck, too. The mean is no single trial's winner, and is measured anew.
#    </details>
# 5. **What goes wrong if PPO forgets `done`?**
#    <details><summary>Answer</summary>
#
#    Actions are praised or blamed for what happens in the next episode, which they had no part in.
#    </details>

# %% [markdown]
# ## Summary

# %%
print(f"C has {sizes['C']} parameters beside {sizes['V'] + sizes['M']} in V and M; its weights: {run.directory / 'controller'}")

# %% [markdown]
# - C reads features, never pixels.
# - Gradients or evolution: both end in the same small file of weights.
# - A learning curve is no score.
#
# ## Next
# [06 Dream](06_dream.ipynb): can one learn to act in a world one has only imagined?
