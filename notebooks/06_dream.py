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
# ## Goals
# - Put M in place of the world and step into it.
# - Train a controller without a single real decision.
# - Find out what of it holds when the agent wakes up.
#
# ## Before you start
# [04 MDN-RNN](04_mdn_rnn.ipynb) made V and M; if it has not run yet, this notebook does it.

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
import shutil

import numpy as np

from wm_lib import examine
from wm_lib.control.agent import RandomAgent
from wm_lib.control.evolution import play_once, train_evolution
from wm_lib.course import plots
from wm_lib.dreams import default_horizon, dream_against_reality, dreams_of
from wm_lib.evaluation import agent_maker, evaluate, random_maker
from wm_lib.events import read_scalars
from wm_lib.pipeline import Pipeline
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
    asleep = plots.record(env, player, num_decisions, look=lambda obs, env=env: np.stack(env.render()))
    ends = int(asleep.done.sum())
    print(f"temperature {temperature}: {num_dreams} dreams of {num_decisions} random decisions, {ends} of them ended, paid {asleep.reward.sum(axis=0).round(1)}")
    if temperature == 0.5:
        calm = asleep
plots.film(np.concatenate([calm.frames, asleep.frames], axis=1), "Dreams of random play: two calm ones (temperature 0.5), two bold ones (1.0)")

# %% [markdown]
# **Explain.** The dream has no score board to keep right and no physics to obey; it only has what M found worth remembering. Things may
# appear, melt or double. What it keeps well is what the next few steps depend on.

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
# ## 3. Waking up
# The same controller, unchanged, in the real environment: its features come from real frames now. Random play stands beside it in
# both worlds, since the two pay by different rules: a dream is cut off early, and its rewards are guesses.

# %%
num_dreams = 16
in_dream, _ = play_once(dream(num_dreams, [seed + 1]), RandomAgent(run.task.num_actions, num_dreams), horizon)
evaluation = run.config.evaluation
episodes = min(8, evaluation.episodes)
awake = evaluate(run.task, agent_maker(run.task, world_model, dreamer), episodes, evaluation.seed)
chance = evaluate(run.task, random_maker(run.task), episodes, evaluation.seed)
print(f"in the dream: {dreamer.meta['mean_return']:.1f}, random play {in_dream.mean():.1f}")
print(f"in reality:   {awake['mean']:.1f}, random play {chance['mean']:.1f}, over {episodes} whole episodes each")

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
# **Explain.** If the return rises in the dream and not in reality, C has found something that pays only there: a flaw of M, which
# evolution will always find if it is worth something. The paper's remedy is a higher *temperature*: a bolder dream is harder to exploit.
# Another is better data: a world model knows only what it has been shown, and this one was shown random play.

# %% [markdown]
# ## 4. How much to trust a dream
# Two questions to ask of any dream. Does a controller earn there what it earns in reality? Here plays the one of notebook 05, which was
# trained awake. And does the dream at least know better from worse? Here a crowd of random linear controllers plays in both worlds,
# and we compare the two rankings: a correlation of 1 means that evolution would choose the same parents asleep as awake.
#
# **Predict.** At which temperature is the dream nearest to reality?

# %%
run.build("controller")
episodes = min(32, 4 * evaluation.episodes)
honest = dream_against_reality(run, num_episodes=episodes, num_candidates=min(16, episodes))
print(f"first {honest['horizon']} decisions of an episode, {episodes} episodes: trained, random play, rank correlation")
print(f"reality          {honest['real']['mean']:8.1f} {honest['real_random']['mean']:8.1f}")
for temperature, asleep in honest["dream"].items():
    correlation = honest["rank_correlation"][temperature]
    known = "all alike" if correlation is None else f"{correlation:+.2f}"
    print(f"temperature {temperature:>4} {asleep['mean']:8.1f} {honest['dream_random'][temperature]['mean']:8.1f} {known:>10}")

# %% [markdown]
# **Explain.** A dream that pays the trained controller no more than a random one has not understood what the reward is for. And a
# dream whose ranking has nothing to do with reality's is no place to train in, however pretty its pictures.

# %% [markdown]
# And what a `full` training of this task showed:

# %%
full = examine.shipped(run.task.name)
print(examine.dream_table(full) if full else f"no full run of {run.task.name} is published yet; wm report --task {run.task.name} measures yours")

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
