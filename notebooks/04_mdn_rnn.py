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
# Change them here in JupyterLab, or from outside with papermill: `-p task pong`. `wm course` does that for all notebooks.

# %% tags=["parameters"]
task: str = "car-racing"  # pong, lunar-lander, breakout or car-racing
budget: str = "auto"  # smoke, laptop or full; auto takes WM_BUDGET, else laptop
seed: int = 0  # of everything random
run_dir: str = "auto"  # folder of the run; auto is runs/BUDGET
# %% [markdown]
# ## Setup

# %%
import numpy as np

from wm_lib import examine, gates
from wm_lib.course import plots
from wm_lib.events import read_scalars
from wm_lib.pipeline import Pipeline

run = Pipeline.open(task, budget, run_dir, seed)
rng = np.random.default_rng(seed)
print(f"{run.task.name}: {run.directory}")

# %% [markdown]
# ## 1. Learning to predict
# M reads *z* and the action, keeps what it needs in its memory *h*, and answers three questions: what will the next *z* be,
# what will it pay, and will the episode end? For each number of *z* it gives a *mixture* of Gaussians, since a ball that may
# bounce left or right is not well described by its mean in the middle.
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
# **Explain.** The first curve is a negative log-likelihood of a *density*. It may well be negative: a narrow Gaussian is higher
# than 1. Only differences mean something.

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
# **Explain.** Each nat says that M thought what really came *e* times as likely. What it knows beyond the copy is motion: where
# things are going, and what the action does to them.

# %% [markdown]
# ## 3. Alone in the dark
# The harder test is *open loop*: M watches for some steps, then the picture stops. From there it feeds on its own predictions and
# is told only the actions that were really taken.
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
# **Explain.** The first column is the last thing M saw. From there small errors grow, because every prediction is built on the one
# before. What stays right longest is what the memory holds well.

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
# **Explain.** All dreams in a row start from the same moment and take the same actions. Where they differ, M says: this I do not know.
# An agent trained in a bold dream cannot rely on luck; [notebook 06](06_dream.ipynb) uses that.

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
full = examine.shipped(run.task.name)
print(examine.memory_table(full) if full else f"no full run of {run.task.name} is published yet; wm report --task {run.task.name} measures yours")

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
