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
# *Minutes on two cores: smoke 0.1, laptop 0.1.*
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
# - Watch one that has learned, awake and in its own dream.
# - Know how the notebooks work and where their results go.
#
# ## Before you start
# You read Python and NumPy, and you have trained some neural network once. A laptop is enough; there is no GPU in
# this course.

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
# Every notebook begins like this. `run` is the training of one task in one folder: it knows what has been made already.

# %%
import numpy as np

from wm_lib.config import resolve_budget
from wm_lib.control.agent import Agent, RandomAgent
from wm_lib.course import films, plots
from wm_lib.course.exercises.start import check_play, check_real_decisions
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
# **Run.** The first seconds of play.

# %%
num_envs, num_decisions = 4, 60
played = {}
for name, world in TASKS.items():
    try:
        env = make_env(world, num_envs, seed)
        played[name] = films.record(env, RandomAgent(world.num_actions, num_envs), num_decisions)
    except (ImportError, UsageError) as error:
        print(f"{name} does not run here: {error}")

for name, recording in played.items():
    paid = recording.reward.sum(axis=0)
    print(f"{name:>12}: paid {', '.join(f'{p:+.1f}' for p in paid)} in {num_decisions} decisions of {num_envs} games")

# %%
moments = np.linspace(0, num_decisions - 1, 8).astype(int)
plots.frame_rows({name: r.frames[moments, 0] for name, r in played.items()}, [f"t = {t}" for t in moments])

# %% [markdown]
# ![Four rows of small frames, one row for each world, time running to the right: Pong, LunarLander, Breakout and CarRacing under random play](../assets/figures/00_worlds.png)
#
# *What to expect: drawn at budget `laptop`.*

# %%
films.film(
    np.stack([recording.frames[:, 0] for recording in played.values()], axis=1),
    f"Random play, from left to right: {', '.join(played)}",
)

# %% [markdown]
# **Explain.** LunarLander punishes at once: fuel and crashes cost. In Pong and Breakout little happens so soon, a point lost, a brick by
# luck. CarRacing pays for the first pieces of road, which need no skill; later the price of every moment eats it up, as notebook 02
# shows.
#
# A frame holds everything you would want to know, somewhere in its 12,288 numbers. Most of them never matter: the walls, the grass, the
# sky. What matters may be two pixels of ball. Finding the few numbers that count is what V
# is for.
#
# One frame does not say where the ball is *going*. That takes memory, which is what M is for.

# %% [markdown]
# ## 2. A taste
# This is where the course is going: an agent that has learned, from pictures alone. On the left the world, on the right what its V
# keeps of each frame. It is one that comes with the course, of your task, or of another as long as yours has none.

# %%
agent_film, shipped = None, None
try:
    from wm_lib.play import play_dream, shipped_agent

    shipped = shipped_agent(run.task.name)
except ImportError as error:
    print(f"no film: {error}; notebook 01 says what mends it")
if shipped:
    played_task, world_model, controller = shipped
    rngs = [np.random.default_rng(seed)] if played_task.sampled else None
    recording = films.record(make_env(played_task, 1, seed), Agent(world_model, controller, 1, rngs), 150)
    kept = world_model.decode(world_model.encode(recording.frames[:, 0]))
    print(f"{played_task.name}: paid {recording.reward.sum():.1f} in {len(kept)} decisions")
    agent_film = films.film(np.stack([recording.frames[:, 0], kept], axis=1), f"The agent of {played_task.name}: the world, and what V keeps")
agent_film

# %% [markdown]
# **Predict.** Now the same agent with its eyes closed: V sees the first frame and nothing more. M says what comes of each action, and C
# acts on that. How long will the dream look like the world?

# %%
dream_film = None
if shipped:
    pictures = []
    paid = play_dream(played_task, world_model, controller, seed, lambda panes, *_: pictures.append(panes), seconds=6)
    print(f"a dream of {len(pictures)} decisions, dreamt pay {paid:.1f}")
    dream_film = films.film(np.stack(pictures), f"Left the real frame with which it began, right the dream of {played_task.name}")
dream_film

# %% [markdown]
# **Explain.** Nothing you see on the right has happened. M was never told the rules of the game; whatever it gets right it has found in
# frames and actions, and where it is wrong, the agent cannot know.

# %% [markdown]
# ## 3. How the course works
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
# ## 4. What goes wrong without a memory
# Back to the ball and the closed eyes. Many balls fly, each at a speed of its own. One player sees only where its ball is now.
# The other one also remembers
# where it was a moment ago. Then both close their eyes and say, moment by moment, where the ball will be.
#
# **Predict.** Draw the two errors over time before you run it.

# %%
rng = np.random.default_rng(seed)
steps = np.arange(11)
speed = rng.normal(size=200)
now = rng.normal(size=200)
before = now - speed
ball = now[:, None] + steps * speed[:, None]  # (balls, steps)
told = {
    "sees one frame": np.repeat(now[:, None], len(steps), axis=1),
    "remembers the one before": now[:, None] + steps * (now - before)[:, None],
}
wrong = {name: np.abs(guess - ball).mean(axis=0) for name, guess in told.items()}
print(f"error after {steps[-1]} moments: {', '.join(f'{name} {error[-1]:.1f}' for name, error in wrong.items())}")
plots.lines({name: (steps, error) for name, error in wrong.items()}, "moments with eyes closed", "mean error")

# %% [markdown]
# ![Two lines: the error of the player who sees one frame rises evenly with every moment, that of the player who remembers stays at zero](../assets/figures/00_memory.png)
#
# *What to expect: drawn at budget `smoke`; nothing has learned anything at that budget.*

# %% [markdown]
# **Explain.** The first player is not stupid: a ball that may fly to either side is best guessed to stay. What it lacks is not in
# the frame at all, so no
# better pair of eyes would help. Real worlds add walls, bounces and other players, and the memory has to be learned; that is
# notebook 04.

# %% [markdown]
# ## 5. Words and symbols
# Each is explained where it is needed. Come back here when one has slipped your mind.
#
# <details><summary>All of them</summary>
#
# | word or symbol | meaning | notebook |
# |---|---|---|
# | frame, *obs* | a picture of 64 × 64 pixels in three colours | 00 |
# | decision | one choice of an action; it lasts for a few frames of the game | 00 |
# | reward, return | what a decision is paid; the sum of an episode | 00 |
# | episode | one game, from its start until it has *terminated* (it was over) or was *truncated* (cut off) | 02 |
# | real steps | decisions that learning took in the real world | 07 |
# | V, *z* | the eyes; the 32 numbers that they make of a frame | 03 |
# | μ, σ | mean and standard deviation of a Gaussian; of V's answer, or of M's | 03 |
# | KL, β | how far V's answer is from a standard Gaussian, in nats; how much that weighs in the loss | 03 |
# | ELBO | what a VAE maximises: how well the frame can be drawn from *z*, minus the KL | 03 |
# | nat | unit of surprise: one nat more is *e* times less likely | 03 |
# | active unit | a number of *z* that varies over the data | 03 |
# | M, *h* | the memory: a recurrent network; the numbers in which it keeps the past | 04 |
# | mixture, π_k | several Gaussians for one number, and the weight of each | 04 |
# | NLL | negative log-likelihood, how surprised M is at what came, in nats | 04 |
# | temperature τ | how boldly a dream is drawn: 0 the likeliest, 1 what M believes | 04 |
# | C, logits | the hand; its preferences for each action, before a softmax | 05 |
# | γ, λ, v_t | how much later rewards count; how far surprises reach; the return a critic expects | 05 |
# | CMA-ES | evolution that adapts the shape of the cloud from which it draws candidates | 05 |
# | population, generation, σ | candidates tried together; one round of it; the width of their cloud | 05 |
# | dream, horizon | play in M alone; after how many decisions it is cut off | 06 |
# | round | the agent collects, and V, M and C go on with more data | 07 |
# | 95 % interval | computed anew for each of many repetitions, 95 in 100 would hold the true mean | 07 |
# | sticky actions | with a probability of ¼ the game repeats the last action instead | 08 |
#
# </details>

# %% [markdown]
# ## 6. Exercises
# Each has a function to fill in and a cell that says how you fare. Every notebook has some. An unsolved one stops nothing.

# %% [markdown]
# ### Exercise 0.1 · What did it cost?
# (5 minutes, easy) An agent's costs are the decisions it took in the real world: there one has to wait, and things break. Dreams
# cost none.
# A ledger is a list of entries such as `{"world": "dream", "games": 64, "decisions": 1000, "frames_per_decision": 4}`, where
# `decisions` are those
# of one game. Add up.

# %%
def real_decisions(ledger: list[dict]) -> int | None:
    """Decisions in the real world of all games together."""
    return None


# %%
print(check_real_decisions(real_decisions))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `world` is "real" or "dream". A decision lasts for several frames and is one all the same.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def real_decisions(ledger: list[dict]) -> int:
#     """Decisions in the real world of all games together."""
#     return sum(entry["games"] * entry["decisions"] for entry in ledger if entry["world"] == "real")
# ```
#
# </details>

# %% [markdown]
# ### Exercise 0.2 · The order of things
# (12 minutes, medium) V, M and C as functions, and a world: play, and return the list of the actions. In every decision V sees
# the frame, C chooses
# from *z* and from what is remembered *so far*, M takes in *z* and the action, and the world answers with the next frame.

# %%
def play(see, remember, choose, world, frame, memory, num_decisions: int) -> list | None:
    """z = see(frame), memory = remember(z, action, memory), action = choose(z, memory), frame = world(action)."""
    return None


# %%
print(check_play(play))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Four lines in a loop. M cannot come before C: it wants to know what was done.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def play(see, remember, choose, world, frame, memory, num_decisions: int) -> list:
#     """The actions that an agent takes, beginning with this frame and this memory.
#
#     Args:
#         see: V, `z = see(frame)`.
#         remember: M, `memory = remember(z, action, memory)`.
#         choose: C, `action = choose(z, memory)`.
#         world: `frame = world(action)`.
#         frame: What is seen first.
#         memory: What is remembered at first.
#         num_decisions: How often it decides.
#     """
#     actions = []
#     for _ in range(num_decisions):
#         z = see(frame)
#         action = choose(z, memory)
#         memory = remember(z, action, memory)
#         frame = world(action)
#         actions.append(action)
#     return actions
# ```
#
# In the course this is `wm_lib.control.agent.Agent`, for many games side by side.
#
# </details>

# %% [markdown]
# ## 7. Check yourself
# Answer before you unfold.
#
# 1. **What does V do, in a sentence?**
#
# <details><summary>Answer</summary>
#
# It turns a frame into a few numbers, *z*, from which the frame could be drawn again.
#
# </details>
#
# 2. **What does M do, in a sentence?**
#
# <details><summary>Answer</summary>
#
# From *z*, the action and what it remembers, it says which *z* may come next.
#
# </details>
#
# 3. **What does C do, in a sentence?**
#
# <details><summary>Answer</summary>
#
# It chooses the action, from *z* and M's memory *h*.
#
# </details>
#
# 4. **Which of the three could be left out if one frame told everything, also where things are going?**
#
# <details><summary>Answer</summary>
#
# For acting, the memory: C could choose from *z* alone. For dreaming M would still be needed, since someone has to say what comes
# next.
#
# </details>
#
# 5. **You ran a notebook at `smoke` and the score is poor. What follows?**
#
# <details><summary>Answer</summary>
#
# Nothing. `smoke` only proves that every cell runs; go to `laptop`.
#
# </details>

# %% [markdown]
# ## Summary
# - V sees, M remembers and predicts, C acts. V and M together are a world model.
# - The four worlds look different and are used in the same way: a frame in, the number of an action out.
# - Results are kept in the folder of the run, stage by stage.
#
# ## Next
# [01 Diagnostics](01_diagnostics.ipynb): what is installed here, and what do the four worlds ask of us?
