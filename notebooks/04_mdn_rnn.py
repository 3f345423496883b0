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
# # 04 MDN-RNN
# **What comes next, if more than one thing may?**
#
# *Minutes on two cores: smoke 0.1, laptop 0.9.*
#
# ## Goals
# - Train M, a recurrent network that predicts a *distribution* over the next *z*.
# - Judge a prediction by its likelihood, against the simplest guess there is.
# - Let M dream on alone, and see for how long it stays with reality.
#
# ## Before you start
# [03 VAE](03_vae.ipynb) made the latents; if it has not run yet, this notebook does it. You know what an LSTM keeps and what a
# Gaussian is.

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
import torch  # noqa: F401, for exercise 4.3
from torch import Tensor

from wm_lib import examine_report, gates
from wm_lib.course import plots, widgets
from wm_lib.course.exercises.mdn_rnn import check_at_temperature, check_line_up, check_mdn_nll
from wm_lib.events import read_scalars
from wm_lib.models.forecast import evaluate_mdn_rnn
from wm_lib.models.mdn_rnn import (
    HALF_LOG_2PI,  # noqa: F401, for exercise 4.3
    load_mdn_rnn,
)
from wm_lib.pipeline import Pipeline

run = Pipeline.open(task, budget, run_dir, seed)
rng = np.random.default_rng(seed)
print(f"{run.task.name}: {run.directory}")

# %% [markdown]
# ## 1. Learning to predict
# M reads *z* and the action, keeps what it needs in its memory *h*, and answers three questions: what will the next *z* be,
# what will it pay, and will the episode end? (In Breakout a lost life is an end, too: what comes then is a new serve, of which nothing
# before tells.) For each number of *z* it gives a *mixture* of Gaussians, since a ball that may
# bounce left or right is not well described by its mean in the middle.
#
# Most of *z* stays nearly as it is from one decision to the next. Such numbers, which V's own data tell from the others, M predicts as
# *changes*: its Gaussians lie around the number it has just read. And it is told how they changed since the decision before: a
# network can subtract, but takes long to learn it. The paper's M does neither.
#
# **Predict.** Which of the three is the hardest in your task?

# %%
run.build("mdn_rnn")
facts, config = run.facts("mdn_rnn")["facts"], run.config.mdnrnn
print(f"{config.num_updates} updates of {config.batch_size} windows of {config.sequence_length} steps, {run.facts('mdn_rnn')['minutes']:.2f} minutes")
scalars = read_scalars(run.directory / "mdn_rnn")
for name, (steps, values) in scalars.items():
    print(f"{name:>16}: {values[0]:.4g} at update {steps[0]}, {values[-1]:.4g} at update {steps[-1]}")
panels = {"next z, nats": ["nll", "held_out_nll"], "reward, relative": ["reward", "held_out_reward"], "end, nats": ["done", "held_out_done"]}
plots.learning_curves(scalars, panels, "update")

# %% [markdown]
# **Explain.** The first curve is a negative log-likelihood of a *density*, in nats, summed over the numbers of *z*. It may well be
# negative: a narrow Gaussian is higher than 1. Only differences mean something. The reward's error is relative: 1 is what always
# saying 0 costs. Where a held-out curve stays up or rises while the other one falls, M learns what it was shown by heart, and that
# question is the hard one.

# %% [markdown]
# ## 2. Better than nothing?
# A world that changes little is easy: say that the next *z* is like this one. That guess, with the usual size of a change as its
# width, is our baseline, on stretches of play that M has never seen.
#
# **Predict.** By how many nats a step will M be ahead?

# %%
print(f"over {facts['num_steps']} held-out steps: M {facts['nll']:.2f} nats a step, copying the last z {facts['copy_last_nll']:.2f}")
print(f"reward: squared error of M {facts['reward_mse']:.4g}, of always guessing the mean {facts['reward_variance']:.4g}")
plots.bars({"copy the last z": facts["copy_last_nll"], "M": facts["nll"]}, "nats per step", "Surprise at what came next (less is better)")

# %% [markdown]
# **Explain.** Each nat says that M thought what really came *e* times as likely. Two things put it ahead: motion, that is where
# things are going and what the action does to them; and knowing *when* much will change and when little, while the copy has one
# width for both.

# %% [markdown]
# ## 3. Alone in the dark
# The harder test is *open loop*: M watches for some steps, then the picture stops. From there it feeds on its own predictions, the
# likeliest one each time, and is told only the actions that were really taken.
#
# **Predict.** After how many steps will its picture be wrong?

# %%
world_model, latents = run.world_model(), run.latents()
watch, alone = 16, 12
length = watch + alone
num_rows = latents["first"].shape[1]
held_out = run.rollouts().split()[1]
windows = [
    (s, t)
    for s in held_out
    for t in range(0, num_rows - length, alone)
    if not latents["first"][s, t + 1 : t + length].any()
]
print(f"{len(windows)} held-out windows of {watch} + {alone} steps within one episode")


# %%
def dream_on(z: np.ndarray, action: np.ndarray, temperature: float) -> np.ndarray:
    """M watches the first `watch` of z (windows, length, z_dim), then goes on alone; what it saw, (windows, alone, z_dim)."""
    h = world_model.initial_state(len(z))
    for t in range(watch):
        h = world_model.step(z[:, t], action[:, t], h)
    now, dreamt = z[:, watch], []
    for t in range(watch, watch + alone):
        dreamt.append(now)
        now, _, _, h = world_model.imagine(now, action[:, t], h, temperature, rng)
    return np.stack(dreamt, axis=1)


# %%
if windows:
    rows = np.array([[s * num_rows + t for t in range(t, t + length)] for s, t in windows])
    z = latents["mu"].reshape(-1, world_model.z_dim)[rows]
    action = latents["action"].reshape(-1)[rows]
    dreamt, happened = dream_on(z, action, temperature=0.0), z[:, watch:]
    copied = np.broadcast_to(z[:, watch : watch + 1], happened.shape)
    steps = np.arange(alone)
    wrong = {name: np.square(guess - happened).mean(axis=(0, 2)) for name, guess in {"M alone": dreamt, "copy": copied}.items()}
    print(f"mean squared error of z after {alone - 1} steps alone: M {wrong['M alone'][-1]:.3f}, copying {wrong['copy'][-1]:.3f}")
    figure = plots.lines({name: (steps, error) for name, error in wrong.items()}, "steps alone", "squared error of z")
else:
    print("no window is long enough: episodes are too short in this data")
    figure = None
figure

# %%
if windows:
    which = int(np.square(np.diff(happened, axis=1)).mean(axis=(1, 2)).argmax())
    really = run.rollouts().gather(rows[which, watch:])
    shown = {"happened": really, "V saw": world_model.decode(happened[which]), "M dreamt": world_model.decode(dreamt[which])}
    print(f"window {which}, the liveliest: what happened, what V made of it, and what M saw with its eyes closed")
    figure = plots.frame_rows(shown, [f"+{k}" for k in steps])
figure

# %% [markdown]
# ![Three rows of twelve frames, time running to the right: what happened, what V made of it, and what M dreamt, alone after the first of them](../assets/figures/04_alone.png)
#
# *What to expect: drawn at budget `laptop`.*

# %% [markdown]
# **Explain.** The curve is the mean of all windows; the pictures are of the one where most happens, so the hardest. The first column
# is the last thing M saw. From there small errors grow, because every prediction is built on the one before. What stays right longest
# is what the memory holds well.

# %% [markdown]
# ## 4. Temperature
# A distribution can be drawn from more or less boldly. At temperature 0 the likeliest thing happens, at 1 what M believes, above 1 the
# unlikely happens too often.
#
# **Predict.** What will a dream look like at a high temperature?

# %%
temperatures = (0.0, 0.5, 1.0, 1.5)
if windows:
    tries = 16
    repeated = [np.repeat(values[which : which + 1], tries, axis=0) for values in (z, action)]
    futures = {tau: dream_on(*repeated, temperature=tau) for tau in temperatures}
    for tau, future in futures.items():
        print(f"temperature {tau}: after {alone - 1} steps the {tries} dreams differ by {future[:, -1].std(axis=0).mean():.3f} in z")
    figure = plots.frame_rows({f"τ = {tau}": world_model.decode(future[:8, -1]) for tau, future in futures.items()},
                              title=f"Eight dreams of the same moment, {alone - 1} steps on")  # fmt: skip
figure

# %% [markdown]
# ![Four rows of eight frames, one row for each temperature from 0 to 1.5: in the first all eight dreams are the same, further down they differ](../assets/figures/04_temperature.png)
#
# *What to expect: drawn at budget `laptop`.*

# %% [markdown]
# **Explain.** All dreams in a row start from the same moment and take the same actions. Where they differ, M says: this I do not know.
# An agent trained in a bold dream cannot rely on luck; [notebook 06](06_dream.ipynb) uses that.

# %% [markdown]
# **Try.** One of these dreams, with the same random numbers at every temperature: from where on does it come apart?

# %%
slider = None
if windows:
    h = world_model.initial_state(1)
    for t in range(watch):
        h = world_model.step(z[which : which + 1, t], action[which : which + 1, t], h)
    slider = widgets.show(widgets.temperature(world_model, z[which : which + 1, watch], h, action[which, watch:], seed))
slider

# %% [markdown]
# ## 5. Before you go on: the checklist
# The course checks every stage before it builds on it; the *gates* stop a training that would only waste your evening. Here they are
# for M. Tick them off by eye first: does it beat copying, and do its dreams stay in the world?
#
# **Predict.** Which one is the closest call?

# %%
print(gates.report(run.gates("mdn_rnn")))

# %% [markdown]
# **Explain.** Both are low bars on purpose. A memory that fails them is broken; one that passes may still be poor.

# %% [markdown]
# ## 6. What a full run remembers
# After a `full` training, beside simpler predictions: copying, a linear one, and the same network with one Gaussian instead of five. Then
# how far a dream strays: in *z*, in pixels, and in where it thinks the ball, the ship or the road is.

# %%
full = examine_report.shipped(run.task.name)
print(examine_report.memory_table(full) if full else f"no full run of {run.task.name} is published yet; wm report --task {run.task.name} measures yours")

# %% [markdown]
# **Explain.** A surprise is minus the logarithm of a density, so it may well be negative; less is better. For reward and end the steps are
# sorted by what M said and cut into groups: an honest M says on average what came. The drift of *z* is the root of the mean square that
# section 3 draws; of pixels only those count that differ from the scenery; and *V of the real frame* is the best that a dream can be.

# %% [markdown]
# ## 7. What goes wrong when actions come late
# The most common mistake with a recurrent world model makes no noise at all: the action in a row is not the one that was taken
# there, but
# the one before. Every shape is right, the loss falls, and M learns that its hand does nothing. Here we ask our M about the same
# held-out
# steps, once as they were, and once with every action one row late.
#
# **Predict.** How much worse will M be? In which of the four worlds would you hardly notice?

# %%
model = load_mdn_rnn(run.directory / "mdn_rnn" / "mdn_rnn.safetensors")
late = {**latents, "action": np.roll(latents["action"], 1, axis=1)}
surprise = {name: evaluate_mdn_rnn(model, data, held_out)["nll"] for name, data in {"as it was": latents, "one row late": late}.items()}
changed = np.mean(late["action"][held_out] != latents["action"][held_out])
print(f"{100 * changed:.0f} % of the actions differ; nats per step: {', '.join(f'{name} {nll:.2f}' for name, nll in surprise.items())}")
plots.bars(surprise, "nats per step", "Surprise of the same M (less is better)")

# %% [markdown]
# **Explain.** Where random play holds its actions, most of them are the same one row later, and the average hides the rest. Had M
# been *trained* so,
# nobody would have told us; only C would never learn to steer in its dreams. Line up rows with care, and test it: exercise 4.1.
# (At budget
# smoke M has learned too little to care.)

# %% [markdown]
# ## 8. Exercises
# Each has a function to fill in and a cell that says how you fare. Run them in any order; nothing later depends on them.

# %% [markdown]
# ### Exercise 4.1 · Question and answer
# (8 minutes, easy) From rows of play, which may hold several episodes, make what M reads and what it should answer. In row t
# *z* was seen, then the action was taken, and `done` says whether that action ended the episode. Where no next *z* follows, M
# must not be
# asked for one: say so in `known`.

# %%
def line_up(z: np.ndarray, action: np.ndarray, done: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """z and action that M reads, z_next that it should predict, and bool known; each has time - 1 rows."""
    return None


# %%
print(check_line_up(line_up))

# %% [markdown]
# <details><summary>Hint</summary>
#
# The last row has no next one. Of the others, those with `done` have one in the array, and it belongs to another episode.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def line_up(
#     z: np.ndarray, action: np.ndarray, done: np.ndarray
# ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
#     """What M reads and what it should answer, from `time` rows of play that may hold several episodes.
#
#     Row t of `z` (time, z_dim) was seen, then `action[t]` was taken, and `done[t]` says whether it ended the episode.
#
#     Returns:
#         z and action that M reads, z that it should predict, and bool `known`: whether that z follows at all. Each has
#         time - 1 rows.
#     """
#     return z[:-1], action[:-1], z[1:], ~done[:-1]
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4.2 · Bolder and calmer
# (10 minutes, medium) Apply a temperature τ > 0 to a mixture, as the paper does: divide the logarithms of the weights by τ and
# normalise again; multiply every σ by √τ. It should also survive a τ as small as 0.00001.

# %%
def at_temperature(log_pi: np.ndarray, log_sigma: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Weights and widths, each (..., num_mixtures), at a temperature above 0."""
    return None


# %%
print(check_at_temperature(at_temperature))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Weights that are normalised do not change when you subtract the same number from all logarithms. Which number keeps one
# exponential at 1?
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def at_temperature(log_pi: np.ndarray, log_sigma: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
#     """Weights and widths of a mixture (..., num_mixtures) at a temperature above 0."""
#     scaled = log_pi / temperature
#     weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
#     return weights / weights.sum(axis=-1, keepdims=True), np.exp(log_sigma) * np.sqrt(temperature)
# ```
#
# The library draws with the same numbers in `wm_lib.models.mdn_rnn.sample_mdn`; a test compares the two.
#
# </details>

# %% [markdown]
# ### Exercise 4.3 · The likelihood of a mixture
# (20 minutes, hard) Rebuild M's loss. For each dimension of *z* there is a mixture of its own; the dimensions are independent given
# the memory. The loss is −Σ_i log Σ_k π_ik N(z_i; μ_ik, σ_ik), i over the numbers of *z*, k over the parts of the mixture. Shapes:
# (batch, time, z_dim, num_mixtures) for the mixture, (batch, time, z_dim) for what came.
# Give the nats for each step, (batch, time). `HALF_LOG_2PI` is ½ log 2π.

# %%
def mdn_nll(log_pi: Tensor, mu: Tensor, log_sigma: Tensor, z_next: Tensor) -> Tensor | None:
    """Negative log-likelihood of z_next, (batch, time)."""
    return None


# %%
print(check_mdn_nll(mdn_nll))

# %% [markdown]
# <details><summary>Hint</summary>
#
# First the log density of every component: −½ ((z − mu) / σ)² − log σ − ½ log 2π. Add log π. Then `torch.logsumexp` over the
# mixture, and
# the sum over the dimensions. Taking the exponential yourself gives log 0 for a *z* far away.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def mdn_nll(log_pi: Tensor, mu: Tensor, log_sigma: Tensor, z_next: Tensor) -> Tensor:
#     """Negative log-likelihood of z_next under one mixture per dimension; may be negative, as of any density.
#
#     -sum_i log sum_k pi_ik N(z_i; mu_ik, sigma_ik), Bishop (1994), eq. 29, over independent dimensions i.
#
#     Args:
#         log_pi: Normalised log weights (batch, time, z_dim, num_mixtures).
#         mu: Means, the same shape.
#         log_sigma: Logs of the standard deviations, the same shape.
#         z_next: (batch, time, z_dim).
#
#     Returns:
#         Nats per step (batch, time), summed over the dimensions of z.
#     """
#     standardised = (z_next[..., None] - mu) * torch.exp(-log_sigma)
#     log_density = log_pi - log_sigma - 0.5 * standardised.square()
#     return (HALF_LOG_2PI - torch.logsumexp(log_density, dim=-1)).sum(dim=-1)
# ```
#
# </details>

# %% [markdown]
# ## 9. Check yourself
# Answer before you unfold.
#
# 1. **Why may the negative log-likelihood fall below 0?**
#
# <details><summary>Answer</summary>
#
# It is that of a density. A Gaussian with a small σ is higher than 1 near its mean, and the logarithm is then above 0.
#
# </details>
#
# 2. **A ball bounces left or right, each as likely. What would a single Gaussian say, and what a mixture?**
#
# <details><summary>Answer</summary>
#
# The single one puts its mean in the middle, where the ball never is, with a σ that covers both sides. A mixture puts half of its
# weight on either side.
#
# </details>
#
# 3. **Why is the loss masked where an episode ends?**
#
# <details><summary>Answer</summary>
#
# The next row holds the first *z* of another episode. Nothing in the last *z* or the action tells of it, so M would learn to
# guess starts, and widen its Gaussians everywhere that resembles an end.
#
# </details>
#
# 4. **What does temperature 0 do, and what is lost by it?**
#
# <details><summary>Answer</summary>
#
# The mean of the heaviest component is taken every time. What is rarer never happens, so an agent that learns in such a dream
# meets no bad luck and no doubt.
#
# </details>
#
# 5. **M beats the copy by far, one step ahead. Does it follow that its dreams are good?**
#
# <details><summary>Answer</summary>
#
# No. One step ahead it is given a true *z* every time. Alone it reads its own, and small errors grow; see section 3.
#
# </details>

# %% [markdown]
# ## Summary

# %%
print(f"M against copying: {facts['nll'] - facts['copy_last_nll']:+.2f} nats a step (below 0, M is better); its weights: {run.directory / 'mdn_rnn'}")

# %% [markdown]
# - M predicts a mixture, so that "left or right" need not become "in the middle".
# - Its likelihood counts only beside a baseline.
# - Alone it drifts; temperature sets how boldly it dreams.
#
# ## Next
# [05 Controller](05_controller.ipynb): how small can the part that acts be?
