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
# # 06 Dream
# **Can one learn to act in a world one has only imagined?**
#
# *Minutes on two cores: smoke 0.6, laptop 7.0.*
#
# ## Goals
# - Put M in place of the world and step into it.
# - Train a controller without a single real decision.
# - Find out what of it holds when the agent wakes up.
#
# ## Before you start
# [04 MDN-RNN](04_mdn_rnn.ipynb) made V and M; if it has not run yet, this notebook does it.

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
from collections.abc import Callable
from typing import Any

import numpy as np

from wm_lib import examine_report, experiments
from wm_lib.control.agent import RandomAgent
from wm_lib.control.evolution import play_once, train_evolution
from wm_lib.course import films, play_dream, plots, widgets
from wm_lib.course.exercises.dream import check_cheats, check_dream_return, check_expected_length, check_spearman
from wm_lib.dreams import default_horizon, dream_against_reality, dreams_of
from wm_lib.evaluation import agent_maker, evaluate, random_maker
from wm_lib.events import read_scalars
from wm_lib.pipeline import Pipeline
from wm_lib.play import RESEED, Beside
from wm_lib.report import interval
from wm_lib.worlds.dream import DreamVectorEnv

run = Pipeline.open(task, budget, run_dir, seed)
print(f"{run.task.name}: {run.directory}")

# %% [markdown]
# ## 1. Falling asleep
# A dream starts from a *z* that V once saw at the start of a real episode. From there M makes up everything: the next *z*, the reward,
# the end. It takes actions like a real environment, so whatever plays there can play here.

# %%
run.build("mdn_rnn")
world_model, horizon = run.world_model(), default_horizon(run)
print(f"dreams start from {int(run.latents()['first'].sum())} real moments and last at most {horizon} decisions")


def dream(num_envs: int, seeds: list[int], temperature: float = 1.0) -> DreamVectorEnv:
    """So many dreams side by side, from where real episodes began."""
    return dreams_of(run, num_envs, horizon, temperature, seed=seeds[0])


# %% [markdown]
# **Predict.** Nothing real is in the next film. What will give it away?

# %%
num_dreams, num_decisions = 2, 40
for temperature in (0.5, 1.0):
    env = dream(num_dreams, [seed], temperature)
    player = RandomAgent(run.task.num_actions, num_dreams)
    asleep = films.record(env, player, num_decisions, look=lambda obs, env=env: np.stack(env.render()))
    ends = int(asleep.done.sum())
    print(f"temperature {temperature}: {num_dreams} dreams of {num_decisions} random decisions, {ends} of them ended, paid {asleep.reward.sum(axis=0).round(1)}")
    if temperature == 0.5:
        calm = asleep
films.film(np.concatenate([calm.frames, asleep.frames], axis=1), "Dreams of random play: two calm ones (temperature 0.5), two bold ones (1.0)")

# %% [markdown]
# **Explain.** The dream has no score board to keep right and no physics to obey; it only has what M found worth remembering. Things may
# appear, melt or double. What it keeps well is what the next few steps depend on.

# %% [markdown]
# **Predict.** Next the real thing beside it: on the left held-out play, in the middle what V makes of each frame, on the right what M
# dreams, told only which actions were taken. For how long will the right one agree with the left one?

# %%
data = run.rollouts()
row = int(data.split()[1][0])
begins = np.flatnonzero(data.first[row, 1:]) + 1
num_frames = int(min([3 * RESEED, data.length, *begins]))
beside = Beside(world_model)
panes = [beside(*seen) for seen in zip(data.gather(row * data.length + np.arange(num_frames)), data.action[row], strict=False)]
films.film(np.stack(panes), "Three pictures side by side: held-out play, V's drawing of it, and the dream of M")

# %% [markdown]
# **Explain.** Every `RESEED` decisions the dream is shown the game again and jumps back to it; between them it drifts. The middle picture
# is the best that the right one could be: what V does not see, M cannot dream of.

# %% [markdown]
# **Try.** Play both worlds at once: the real game on the left, M's dream of it on the right, and your actions go to both. How long do
# they agree? Do something that random play hardly ever does.

# %%
widgets.show(play_dream.widget(run.task, world_model, seed))

# %% [markdown]
# ## 2. Practising in a dream
# Now CMA-ES breeds a linear controller with M as the only world. A dream is a batch of small matrix products, so it is quick.
#
# **Predict.** Will its return in the dream rise? And what will the same controller earn in reality?

# %%
settings = run.config.controller.model_copy(update={"type": "original", "max_decisions": horizon})
folder = run.directory / "dream"
shutil.rmtree(folder, ignore_errors=True)
dreamer = train_evolution(
    world_model, run.task, settings, seed=seed, directory=folder, log_dir=folder, make_env=dream, observes_features=True
)
print(f"{dreamer.meta['generations']} generations, {dreamer.meta['decisions']} dreamt decisions, {dreamer.meta['real_steps']} real ones")
scalars = read_scalars(folder)
plots.learning_curves(scalars, {"return in the dream": ["best_return", "mean_return"]}, "generation")

# %% [markdown]
# ![Two curves over the generations of evolution in the dream: the return of the best candidate, and the mean of all](../assets/figures/06_practice.png)
#
# *What to expect: drawn at budget `laptop`.*

# %% [markdown]
# ## 3. Waking up
# The same controller, unchanged, in the real environment: its features come from real frames now. Random play stands beside it in
# both worlds, since the two pay by different rules: a dream (temperature 1 here) is cut off after its horizon, wherever the real
# episode would be, and its rewards and ends are guesses.

# %%
num_dreams = 16
in_dream, _ = play_once(dream(num_dreams, [seed + 1]), RandomAgent(run.task.num_actions, num_dreams), horizon)
evaluation = run.config.evaluation
episodes = min(8, evaluation.episodes)
awake = evaluate(run.task, agent_maker(run.task, world_model, dreamer), episodes, evaluation.seed)
chance = evaluate(run.task, random_maker(run.task), episodes, evaluation.seed)
print(f"in the dream: {dreamer.meta['mean_return']:.1f}, random play {in_dream.mean():.1f}")
print(f"in reality:   {interval(awake)}, random play {interval(chance)}, over {episodes} whole episodes each")

# %%
plots.bars(
    {
        "asleep,\nrandom": in_dream.mean(),
        "asleep,\ntrained": dreamer.meta["mean_return"],
        "awake,\nrandom": chance["mean"],
        "awake,\ntrained": awake["mean"],
    },
    "mean return",
    "The same controller asleep and awake",
)

# %% [markdown]
# ![Four bars: mean return of random play and of the trained controller in the dream, and of both in the real world](../assets/figures/06_awake.png)
#
# *What to expect: drawn at budget `laptop`.*

# %% [markdown]
# **Explain.** If the return rises in the dream and, beyond the intervals, not in reality, C has found something that pays only there: a flaw of M, which
# evolution will always find if it is worth something. The paper's remedy is a higher *temperature*: a bolder dream is harder to exploit.
# Another is better data: a world model knows only what it has been shown; in a first round, as at budgets smoke and laptop, that is
# random play.

# %% [markdown]
# ## 4. How much to trust a dream
# Two questions to ask of any dream. Does a controller earn there what it earns in reality? Here plays the one of notebook 05, which was
# trained awake. And does the dream at least know better from worse? Here a crowd of random linear controllers plays in both worlds,
# and we compare the two rankings: a correlation of 1 means that evolution would choose the same parents asleep as awake.
#
# **Predict.** At which temperature is the dream nearest to reality?

# %%
run.build("controller")
episodes = min(32, 2 * evaluation.episodes)
candidates = min(16, episodes)
honest = dream_against_reality(run, num_episodes=episodes, num_candidates=candidates)
print(f"{episodes} episodes each; rank correlation of {candidates} controllers")
print(examine_report.returns_table(honest))

# %% [markdown]
# **Explain.** Behind ± stands the standard error: returns that differ by less than two of them cannot be told apart. A dream that pays the
# trained controller no more than random play has not understood what the reward is for. And a dream whose ranking has nothing to do with reality's is no place to train in, however pretty its pictures. Among n candidates chance
# alone makes correlations of about ±1/√(n−1): temperatures closer than that cannot be told apart. In the row *awake* stands what reality
# says of itself in other games, and no dream can be asked for more. Where random play earns more asleep
# than awake, the dream is too kind.

# %% [markdown]
# And what a `full` training of this task showed:

# %%
full = examine_report.shipped(run.task.name)
print(examine_report.dream_table(full) if full else f"no full run of {run.task.name} is published yet; wm report --task {run.task.name} measures yours")

# %% [markdown]
# ![CarRacing twice: the first frame of a race, and M's dream, in which a road comes, is lost in the grass and comes again](../assets/figures/car-racing-dream.gif)
#
# ![LunarLander twice: the first frame, and M's dream, in which the ship lands between the flags, begins again, and is three ships in the end](../assets/figures/lunar-lander-dream.gif)
#
# ![Breakout twice: the first frame, and M's dream, in which a faint ball flies between paddle and wall, and bricks go, and sometimes come back](../assets/figures/breakout-dream.gif)
#
# ![Pong twice: the first frame, and M's dream, in which two paddles move and a ball, faintly drawn, goes back and forth between them](../assets/figures/pong-dream.gif)
#
# *The shipped agents in dreams at temperature 1. After the first frame, on the left, nothing is real. `wm play --task pong --dream` makes such a film.*

# %% [markdown]
# ## 5. Asleep, awake, or first one and then the other?
# LunarLander again, the V and M of notebook 05's comparison: C learns by PPO in the dream, awake (*as it is*), or in the dream first. Dreams are
# at temperature 1 unless it says another. `wm experiment --task lunar-lander world temperature` does it.
#
# **Predict.** Does practice asleep help the one who then goes on awake? And which temperature is best?

# %%
random_play, *rows = experiments.shipped("lunar-lander", ["world", "temperature"])
print(experiments.table([random_play, *rows]))
measured = {row.variant: (row.score, row.ci_low, row.ci_high) for row in rows}
plots.intervals(measured, "score awake (dashed: random play)", random_play.score, "LunarLander: where C has learnt")

# %% [markdown]
# **Explain.** What was learned asleep is worth next to nothing awake, at any temperature; none stands out by more than the luck of one training may be.
# Here M knew random play only: ships that tumble and crash. What a landing pays it has never seen, and C found out what pays in M's idea of it.
# Who then went on awake had something to unlearn: with as many real decisions it is behind the one who never slept, if one training of each may
# be trusted so far. The remedy is the paper's: let the agent play, add what it saw to the data, and dream again.

# %% [markdown]
# ## 6. What goes wrong: a dream without an end
# M says how probable the end is after every decision. We draw it. It seems simpler to end a dream only when M is sure; here is what comes
# of it, with random play in both kinds of dreams.
#
# **Predict.** Who lives longer, and does it pay?

# %%
for name, threshold in {"drawn": None, "only when M is 99 % sure": 0.99}.items():
    env = dreams_of(run, num_dreams, horizon, 1.0, seed=seed, done_threshold=threshold)
    paid, played = play_once(env, RandomAgent(run.task.num_actions, num_dreams), horizon)
    print(f"the end {name}: {played / num_dreams:.1f} decisions a dream, at most {horizon}; paid {paid.mean():.1f} ± {paid.std() / np.sqrt(num_dreams):.1f}")

# %% [markdown]
# **Explain.** M is hardly ever so sure, so most dreams last to their horizon. Where losing is what ends an episode, a controller can
# learn little here about not losing, and where staying is paid, it is paid for nothing. What is paid has its standard error beside it:
# compare the lengths first. If both lines are alike, M expects hardly any ends, and that is worth knowing, too. Draw what is uncertain.

# %% [markdown]
# ## 7. Exercises
# Write the function in place of `return None`, run the cell and the one below it.

# %% [markdown]
# ### Exercise 6.1 · Who cheats?
# (5 minutes, easy)
# Some controllers have played asleep and awake. Mark those that are better than random play in the dream and not in reality:
# they have found a flaw of M.


# %%
def cheats(asleep: np.ndarray, awake: np.ndarray, random_asleep: float, random_awake: float) -> np.ndarray | None:
    """Which controllers, bool (num,), are better than random play in the dream and not in reality."""
    return None  # your code here


# %%
print(check_cheats(cheats))

# %% [markdown]
# <details><summary>Hint</summary>
#
# A dream pays by its own rules. What can a return in it be compared with?
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def cheats(asleep: np.ndarray, awake: np.ndarray, random_asleep: float, random_awake: float) -> np.ndarray:
#     """Which controllers, bool (num,), are better than random play in the dream and not in reality."""
#     return (asleep > random_asleep) & (awake <= random_awake)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 6.2 · A dream, step by step
# (10 minutes, medium)
# Play one dream and sum what it pays. `act(z, h)` chooses an action. `imagine(z, action, h)` says what comes of it: the next z,
# the reward, whether the dream has ended, and the next h.


# %%
def dream_return(z: Any, h: Any, act: Callable, imagine: Callable, horizon: int) -> float | None:
    """What a dream pays from z and h on, until it ends or has had `horizon` decisions."""
    return None  # your code here


# %%
print(check_dream_return(dream_return))

# %% [markdown]
# <details><summary>Hint</summary>
#
# C sees z and h *before* the action; M takes them with the action. The reward of the last decision counts.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def dream_return(z: Any, h: Any, act: Callable, imagine: Callable, horizon: int) -> float:
#     """What a dream pays from z and h on, until it ends or has had `horizon` decisions."""
#     total = 0.0
#     for _ in range(horizon):
#         z, reward, done, h = imagine(z, act(z, h), h)
#         total += reward
#         if done:
#             break
#     return total
# ```
#
# `wm_lib.worlds.dreaming.Dreams` does it for many dreams at once.
#
# </details>

# %% [markdown]
# ### Exercise 6.3 · How long does a dream last?
# (15 minutes, medium)
# After decision t a dream ends with probability `end_probability[t]`, and after the last one it is cut off. How many decisions
# does it have on average? (With four times 0.4, and a threshold of 0.5 in place of drawing, it would always have four.)


# %%
def expected_length(end_probability: np.ndarray) -> float | None:
    """Decisions that a dream lasts on average; it ends after decision t with probability end_probability[t]."""
    return None  # your code here


# %%
print(check_expected_length(expected_length))

# %% [markdown]
# <details><summary>Hint</summary>
#
# A decision t is made if none before it ended the dream. Add up these probabilities.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def expected_length(end_probability: np.ndarray) -> float:
#     """Decisions that a dream lasts on average; it ends after decision t with probability end_probability[t]."""
#     still_there = np.cumprod(1 - end_probability)
#     return float(1 + still_there[:-1].sum())
# ```
#
# </details>

# %% [markdown]
# ### Exercise 6.4 · Two rankings
# (15 minutes, hard)
# Does the dream know better from worse? Spearman's rank correlation is Pearson's (`np.corrcoef`), taken of the ranks, 1 for the
# smallest. Equal values share the mean of their ranks. NumPy only; where all of one are equal, `None` is the answer.


# %%
def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation of a and b, each (n,); equal values share a rank. None if all of one are equal."""
    return None  # your code here


# %%
print(check_spearman(spearman))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.unique` with `return_inverse` and `return_counts` sorts the values into groups. The last
# rank of a group is the running sum of the counts.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
#     """Spearman's rank correlation of a and b, each (n,); equal values share a rank. None if all of one are equal."""
#
#     def ranks(values: np.ndarray) -> np.ndarray:
#         _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
#         return (np.cumsum(counts) - (counts - 1) / 2)[place]
#
#     a, b = ranks(a), ranks(b)
#     return None if not a.std() or not b.std() else float(np.corrcoef(a, b)[0, 1])
# ```
#
# It is the library's own, `wm_lib.dreams.spearman`.
#
# </details>

# %% [markdown]
# ## 8. Check yourself
# 1. **What does a dream need of the real world?**
#    <details><summary>Answer</summary>
#
#    A z from which it starts, and what V and M have learned before. From then on nothing.
#    </details>
# 2. **Why does C get h, and not z alone?**
#    <details><summary>Answer</summary>
#
#    z is one moment. h holds what came before and so what is to be expected: directions, speeds.
#    </details>
# 3. **A return rises asleep and falls awake. What has C learned?**
#    <details><summary>Answer</summary>
#
#    To use a flaw of M, which reality does not have.
#    </details>
# 4. **Why may a higher temperature help?**
#    <details><summary>Answer</summary>
#
#    A flaw that works only in one precise future is no use when futures are drawn more widely.
#    </details>
# 5. **Why is a rank correlation asked for, when the dream's returns are wrong anyway?**
#    <details><summary>Answer</summary>
#
#    Evolution only chooses among candidates. If the order is right, it chooses the same parents.
#    </details>

# %% [markdown]
# ## Summary

# %%
gain_asleep, gain_awake = dreamer.meta["mean_return"] - in_dream.mean(), awake["mean"] - chance["mean"]
print(f"trained in the dream: {gain_asleep:+.1f} over random play there, {gain_awake:+.1f} in reality")

# %% [markdown]
# - M can stand in for the world behind the same interface.
# - Practice in a dream costs no real decision.
# - What is learned there is worth what the model is worth, and only waking up tells.
#
# ## Next
# [07 Curriculum](07_curriculum.ipynb): does the same recipe take one agent through all four?
