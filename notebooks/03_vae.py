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
# # 03 VAE
# **How does a frame become 32 numbers without losing the ball?**
#
# *Minutes on two cores: smoke 0.2, laptop 5.9.*
#
# ## Goals
# - Train V, a variational autoencoder, and see with its eyes.
# - Understand what its loss rewards, and why the plain one throws small things away.
# - Read the latent numbers *z*: which are in use, and what each one draws.
#
# ## Before you start
# [02 Data collection](02_data_collection.ipynb) made the frames; if it has not run yet, this notebook does it. You know what a
# convolution is.

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
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d  # noqa: F401, for exercise 3.4

from wm_lib import examine_report, gates
from wm_lib.course import plots, widgets
from wm_lib.course.exercises.vae import (
    check_active_units,
    check_foreground_weights,
    check_kl_divergence,
    check_reparameterise,
    check_soft_argmax,
)
from wm_lib.events import read_scalars
from wm_lib.models import foreground, vae
from wm_lib.models.foreground import FOREGROUND_MARGIN, FOREGROUND_THRESHOLD  # noqa: F401, FOREGROUND_MARGIN is for exercise 3.4
from wm_lib.models.places import PIXELS, spots  # noqa: F401, PIXELS is for exercise 3.5
from wm_lib.pipeline import Pipeline

run = Pipeline.open(task, budget, run_dir, seed)
rng = np.random.default_rng(seed)
print(f"{run.task.name}: {run.directory}")

# %% [markdown]
# ## 1. What V is shown
# A VAE is trained to copy its input through a narrow gap of `z_dim` numbers. It is punished for every pixel it gets wrong,
# and a ball is a pixel or two among thousands. Leaving it out costs next to nothing.
#
# So we help. V sees and draws only the difference from the *background*, the median of all frames. And pixels in the *foreground*,
# those that differ from the median of their own episode and those around them, weigh more. A third help is for whoever reads *z*:
# frames that follow each other should have *z* that lie near each other. That is called *slowness*. In LunarLander there is a
# fourth, a *fovea*: V draws the window around the foreground once more, always in the middle, and so learns which way the ship leans.
# In Breakout, and in Pong where the budget is `full`, the fourth help is *places*: the first numbers of *z* are x and y of what moves,
# of ball and paddles. Section 3 shows where they are.
#
# **Predict.** Which parts of the frame below will be foreground?

# %%
run.build("latents")
net = vae.load_vae(run.directory / "vae" / "vae.safetensors")
data, config = run.rollouts(), run.config.vae
scenery = foreground.episode_scenery(data, rng)
episode = data.episode.ravel()
held_out = (data.split()[1][:, None] * data.length + np.arange(data.length)).ravel()


@torch.inference_mode()
def draw(net: vae.VAE, z: torch.Tensor) -> np.ndarray:
    """What V draws for z (batch, z_dim): frames uint8 (batch, 64, 64, 3)."""
    return net.decode(z).mul(255).round().byte().permute(0, 2, 3, 1).numpy()


@torch.inference_mode()
def copy(net: vae.VAE, frames: np.ndarray) -> np.ndarray:
    """Frames uint8 (batch, 64, 64, 3) after they went through V's narrow gap."""
    return draw(net, net.encode(frames)[0])


# %%
one = rng.choice(held_out, 1)
frame, own = data.gather(one), scenery[episode[one]]
weights = foreground.foreground_weights(torch.from_numpy(frame), torch.from_numpy(own), config.foreground_weight)
weights = weights[0, :, :, 0].numpy()
print(f"{100 * (weights > weights.min()).mean():.1f} % of the pixels are foreground, of weight {weights.max():.2f}; the others: {weights.min():.2f}")
plots.maps({"frame": frame[0], "background": net.background.numpy(), "its episode's median": own[0], "weight": weights})

# %% [markdown]
# **Explain.** What stands still in an episode is scenery. Where the camera stands still, what moves is the ball, the paddles, the
# ship. In CarRacing the camera goes along: the car is scenery, and road and grass are foreground, often half of the frame. Foreground
# weighs `foreground_weight` times as much as the rest, and the weights of a frame average 1. The rim around it weighs as much, or a
# blurred halo, drawn where the thing might be, would cost next to nothing. In Breakout a gap in the wall is foreground too, and good
# play makes many; little weight is left for the ball then, which has a place of its own.

# %% [markdown]
# ## 2. Learning
# V has two halves. For each of the `z_dim` numbers the *encoder* gives a Gaussian, its mean μ (`mu`) and its width σ; in training *z* is
# drawn from it, and the *decoder* draws a frame x̂ from *z*. In the pictures below *z* is μ. The loss of a frame x, colours from 0 to 1,
# is
#
# Σ w (x − x̂)² + β Σ KL(N(μ, σ²) ‖ N(0, 1)) + λ ‖μ′ − μ‖²
#
# - the *error*, with the weights w of section 1;
# - β (`beta`) times the *KL divergence*: how much V's Gaussian says beyond N(0, 1), which says nothing about the frame. It is counted in
#   nats; a nat is 1.44 bits. Exercise 3.2 works it out;
# - λ (`slowness`) times the *change*: μ′ is of the next frame.
#
# In LunarLander the fovea's error comes on top, times `vae.fovea`. In Breakout it is how far the nearest place is from what moves, times
# ten (`astray` below): nearby it is counted in nats, far away it grows with the distance only, and each thing counts about once, however
# many its pixels. What moves is what is elsewhere some decisions later: compared with the next frame, a paddle that rests
# would be nobody's, and its place would leave it for the ball. The paper's V had none of our helps.
#
# **Predict.** The error falls. Do the other two?

# %%
facts = run.facts("vae")
print(f"{config.num_updates} updates of {config.batch_size} frames, {facts['facts']['num_params']} parameters, {facts['minutes']:.2f} minutes")
print(f"beta {config.beta:g}, slowness {config.slowness:g}")
scalars = read_scalars(run.directory / "vae")
for name, (steps, values) in scalars.items():
    print(f"{name:>16}: {values[0]:.4g} at update {steps[0]}, {values[-1]:.4g} at update {steps[-1]}")
plots.learning_curves(scalars, {"error": ["error", "held_out_error"], "KL in nats": ["kl", "held_out_kl"], "change of z": ["change", "held_out_change"]}, "update")

# %% [markdown]
# **Explain.** In a first round β grows from 0 during the first fifth of the updates, so that V dares to begin: while saying something costs nearly
# nothing, the KL divergence shoots up. Then it has its price, and V keeps what pays for itself in the drawing. Without the price on
# change *z* would be folded up like a map: a ball that moves by a pixel may send *z* across the page, and a small controller has to
# learn every fold. The held-out frames come from stretches of play that V was never trained on.

# %% [markdown]
# ## 3. Seeing with V's eyes
# **Predict.** What will be blurred? What will be missing?

# %%
index = np.sort(rng.choice(held_out, min(8, len(held_out)), replace=False))
frames = data.gather(index)
drawn = copy(net, frames)
difference = np.abs(frames.astype(int) - drawn).astype(np.uint8)
print(f"{len(frames)} held-out frames; V's drawings are off by {difference.mean():.1f} of 255 on average")
plots.frame_rows({"frame": frames, "V draws": drawn, "difference": difference})

# %% [markdown]
# ![Three rows of eight frames: held-out frames of CarRacing, what V draws of them, and the difference, which is black where they agree](../assets/figures/03_drawings.png)
#
# *What to expect: drawn at budget `laptop`.*

# %% [markdown]
# **Explain.** Everything in the second row went through `z_dim` numbers. If what you would need to play is still there, C can
# play on it; if not, nothing that comes later can bring it back.

# %% [markdown]
# Where V has places, its encoder points: it looks at some pixels more than at others, and a place is the mean of where it looks. No
# drawing has to be right for that. A ball of two pixels drawn next to where it is would be as wrong as no ball at all, so by drawing
# alone V finds out late where the ball is, and in a game well played, where no two walls are alike, never.
#
# **Predict.** Frames of one stretch of play follow each other below. What will the spots of light do?

# %%
start = held_out[0] + int(rng.integers(data.length - 32))
moving = data.gather(np.arange(start, start + 32, 4))
picture = None
if net.num_places:
    with torch.inference_mode():
        lights = spots(net.places_in(net.encode(moving)[0]), 1.5).amax(3).numpy()
    lit = (moving // 2 + 128 * lights[..., None]).astype(np.uint8)
    print(f"{net.num_places} places, every fourth of 32 frames")
    picture = plots.frame_rows({"frame": moving, "its places": lit})
else:
    print(f"V of {run.task.name} has no places; try task = \"breakout\"")
picture

# %% [markdown]
# **Explain.** Nobody said which thing is the ball. What will be elsewhere soon pulls the nearest place to itself, and so each
# place came to follow one thing. In these numbers nothing is folded: twice as far in the picture is twice as far in *z*.
#
# Pointing finds, but it does not measure. A softmax that prefers one pixel to four thousand others prefers the brightest, too, and a ball
# that flies evenly lights now one pixel, now two. So V goes from where it points to the *centre of mass* of what is around: every pixel
# counts as much as it differs from the background, and the less the farther away it is.
#
# **Predict.** Below is how far the fastest place goes from each frame to the next. Which of the two curves will be the smoother?

# %%
picture = None
if net.num_places:
    flight = data.gather(np.arange(start, start + 32))
    with torch.inference_mode():
        found = {"pointed at": net.posterior(net.centre(flight))[0], "measured": net.encode(flight)[0]}
        where = {name: net.places_in(mu) for name, mu in found.items()}
    steps = {name: 32 * np.linalg.norm(np.diff(places.numpy(), axis=0), axis=2) for name, places in where.items()}
    fastest = np.median(steps["measured"], axis=0).argmax()
    median = {name: np.median(np.abs(np.diff(values[:, fastest]))) for name, values in steps.items()}
    print("from one step to the next its length changes by " + ", ".join(f"{value:.2f} pixels ({name})" for name, value in median.items()))
    curves = {name: (np.arange(31), values[:, fastest]) for name, values in steps.items()}
    picture = plots.lines(curves, "decision", "pixels since the frame before")
picture

# %% [markdown]
# **Explain.** Whoever wants to know how fast the ball is takes the difference of two places, and with it the errors of both. What was
# pointed at is off by less than a pixel, but a step of the ball is not much longer, and of its speed hardly anything is left. What was
# measured keeps it. High tips remain: the ball bounces, or a new one is served.

# %% [markdown]
# ## 4. Reading z
# **Predict.** Will V use all of its numbers?

# %%
latents = run.latents()["mu"].reshape(-1, config.z_dim)
variance = np.sort(latents.var(axis=0))[::-1]
print(f"{vae.active_units(latents)} of {config.z_dim} numbers are active: they vary over the data by more than 0.01")
curves = {"variance of z over the data": (np.arange(1, config.z_dim + 1), variance)}
curves["active above this"] = (np.array([1, config.z_dim]), np.full(2, 0.01))
plots.lines(curves, "number, sorted", "variance", log=True)

# %% [markdown]
# Now take one frame and turn one number at a time, from low to high as it occurs in the data.

# %%
strongest = np.argsort(latents.var(axis=0))[::-1][:6]
turns, rows = 7, {}
for unit in strongest:
    z = np.repeat(latents[index[:1]], turns, axis=0)
    z[:, unit] = np.linspace(*np.percentile(latents[:, unit], (1, 99)), turns)
    rows[f"z[{unit}]"] = draw(net, torch.from_numpy(z))
print(f"each row turns one of the {len(strongest)} strongest numbers of one frame, the others stay as they are")
plots.frame_rows(rows, ["low", *[""] * (turns - 2), "high"], "Turning one number")

# %% [markdown]
# **Explain.** A number that lies above the line says different things of different frames. Few of them move one thing alone; most
# change several at once. Nobody told V what a car or a ball is: it found directions in which frames differ.

# %% [markdown]
# **Try.** Move the sliders, and V draws at every touch. Can you move one thing and nothing else? Can you draw a frame that no game
# would ever show?

# %%
def draw_z(z: np.ndarray) -> np.ndarray:
    """What V draws for z (batch, z_dim), as NumPy arrays."""
    return draw(net, torch.from_numpy(z))


widgets.show(widgets.latent_sliders(draw_z, frames[0], latents[index[0]], latents))

# %% [markdown]
# **Try.** Which *z* is the ball, or the car? Go through the numbers, those that move the picture most first; the lower row shows what
# moves. Then take another frame: does the same number still do the same?

# %%
widgets.show(widgets.which_z(draw_z, frames, latents[index], latents))

# %% [markdown]
# ## 5. What goes wrong without help
# Two fresh networks, the same few updates for both. One is the plain VAE: no background, every pixel alike, no slowness. The other is as above.
#
# **Predict.** Which will have the smaller error in the foreground, and will either be better than drawing the scenery alone?

# %%
few = max(1, config.num_updates // 4)
nets = {}
for name, centred in {"plain": False, "with help": True}.items():
    folder = run.directory / "short_vae" / name.replace(" ", "_")
    shutil.rmtree(folder, ignore_errors=True)
    settings = config.model_copy(update={"centred": centred, "num_updates": few})
    nets[name] = vae.train_vae(data, settings, seed=seed, directory=folder).eval()

# %%
index = np.sort(rng.choice(held_out, min(256, len(held_out)), replace=False))
frames, still = data.gather(index), scenery[episode[index]]
stands_out = np.abs(frames.astype(int) - still).max(axis=-1) > FOREGROUND_THRESHOLD
drawings = {"scenery only": still} | {name: copy(short, frames) for name, short in nets.items()}
errors = {name: np.abs(frames.astype(int) - picture)[stands_out].mean() for name, picture in drawings.items()}
print(f"after {few} updates each, error in the foreground, of 255: {', '.join(f'{n} {e:.1f}' for n, e in errors.items())}")
plots.bars(errors, "mean error, of 255", "Error in the foreground of held-out frames")

# %%
pick = np.linspace(0, len(index) - 1, min(8, len(index))).astype(int)
print("rows: the frame, the median of its episode, and what each of the two short trainings draws")
plots.frame_rows({name: pictures[pick] for name, pictures in {"frame": frames, **drawings}.items()})

# %% [markdown]
# ![Four rows of eight frames: the frame, the scenery of its episode alone, what a plain VAE draws after a short training, and what one with help draws](../assets/figures/03_plain.png)
#
# *What to expect: drawn at budget `laptop`.*

# %% [markdown]
# **Explain.** The plain VAE first learns the mean picture, because that is where most of its loss is. Look for the small moving
# things in its row. On Pong or Breakout (`task = "pong"`) the difference is whether there is a ball at all.

# %% [markdown]
# ## 6. Before you go on: the checklist
# The course checks every stage before it builds on it; the *gates* stop a training that would only waste your evening. Here they are
# for V. Tick them off by eye first: does V use its numbers, and is what you need to play still in them?
#
# **Predict.** By how much will V pass?

# %%
print(gates.report(run.gates("latents")))

# %% [markdown]
# **Explain.** The *probe* is a small network that learns to read the position of ball or ship from *z* and is tested on games it has never
# seen. What it cannot read, C cannot either. (Budget smoke does not probe. CarRacing's
# truth comes from one slow environment at a time, too slow to ask at every training; section 7 has it.)

# %% [markdown]
# ## 7. What a full run sees
# The same questions, asked of V after a `full` training, on random play and on the agent's own. Beside the error of always answering the
# mean stand those of a line (the *linear probe*) and of a small network. A place is counted in pixels of the 64 × 64 frame. One frame
# shows no motion: how far a thing moves in a decision is read from what C sees, some *z* and M's memory *h*, and from *h* alone.
#
# **Predict.** What will a line read as well as a network? Where does good play differ from random play?

# %%
full = examine_report.shipped(run.task.name)
print(examine_report.eyes_table(full) if full else f"no full run of {run.task.name} is published yet; wm report --task {run.task.name} measures yours")

# %% [markdown]
# **Explain.** Half of all errors are smaller than the one in the table, the median; what is lost now and then shows in *nine of ten below*.
# R² is the share of the variance that is explained: 1 is all of it, 0 what the mean explains, and less than 0 is worse than the mean. Where
# a thing mostly rests, the mean's median error is next to nothing, and only R² tells who knows when it moves. What the network reads and
# the line does not is there, but folded up: C has to unfold it. What neither reads is lost.

# %% [markdown]
# ![CarRacing in three panes: the game, V's picture of it, and M's dream of it](../assets/figures/car-racing.gif)
#
# *The shipped agent: the game, what V sees of it, and what M dreams meanwhile.*

# %% [markdown]
# ## 8. Exercises
# Each has a function to fill in and a cell that says how you fare. Run them in any order; nothing later depends on them.

# %% [markdown]
# ### Exercise 3.1 · A draw one can learn from
# (5 minutes, easy) V does not send *z* itself but a Gaussian, and *z* is drawn from it. A draw has no gradient; but
# noise of the standard Gaussian, stretched and moved, is the same draw and has one. Write it. Both mu and the logarithm of σ,
# `log_sigma`, are tensors (batch, z_dim).

# %%
def reparameterise(mu: Tensor, log_sigma: Tensor, noise: Tensor) -> Tensor | None:
    """z (batch, z_dim) of V's posterior, from noise of the standard Gaussian."""
    return None


# %%
print(check_reparameterise(reparameterise))

# %% [markdown]
# <details><summary>Hint</summary>
#
# V's network gives the *logarithm* of σ, so that it may be any number while σ stays positive.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def reparameterise(mu: Tensor, log_sigma: Tensor, noise: Tensor) -> Tensor:
#     """z of V's posterior, (batch, z_dim), from noise of the standard Gaussian of the same shape."""
#     return mu + log_sigma.exp() * noise
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3.2 · The price of a message
# (10 minutes, medium) What does it cost, in nats, to say N(mu, σ²) instead of N(0, 1)? The divergence is the mean, under the
# first, of the difference of the two log densities. Work it out on paper for one number; then give it for every frame and dimension.

# %%
def kl_divergence(mu: Tensor, log_sigma: Tensor) -> Tensor | None:
    """KL(N(mu, sigma^2) || N(0, 1)) for each number, in nats; the shape of `mu`."""
    return None


# %%
print(check_kl_divergence(kl_divergence))

# %% [markdown]
# <details><summary>Hint</summary>
#
# log N(z; mu, σ²) is −log σ − (z − mu)² / 2σ² and a constant, which also stands in the other one. Under the first Gaussian
# the mean of (z − mu)² is σ², and that of z² is mu² + σ².
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def kl_divergence(mu: Tensor, log_sigma: Tensor) -> Tensor:
#     """KL(N(mu, sigma^2) || N(0, 1)) per latent dimension, in nats; shape of `mu`. Kingma & Welling (2014), eq. 10."""
#     return 0.5 * (mu.square() + (2 * log_sigma).exp() - 1) - log_sigma
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3.3 · Numbers in use
# (8 minutes, medium) A dimension that V has given up says the same about every frame. Count those that it uses: whose mean
# varies over the data with a variance above 0.01. The last axis of `mu` is z; there may be one or more before it.

# %%
def active_units(mu: np.ndarray) -> int | None:
    """How many dimensions of z vary over the data, `mu` (..., z_dim)."""
    return None


# %%
print(check_active_units(active_units))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Flatten all axes but the last into one. Then ask each column, not each row, for its variance.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def active_units(mu: np.ndarray, threshold: float = 0.01) -> int:
#     """Latent dimensions whose posterior mean varies over the data (variance above `threshold`; Burda et al., 2016).
#
#     Args:
#         mu: (..., z_dim).
#     """
#     return int((mu.reshape(-1, mu.shape[-1]).var(axis=0) > threshold).sum())
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3.4 · Pixels that matter
# (20 minutes, hard) Rebuild what section 1 showed. A pixel is *different* when any of its colours is more than
# `FOREGROUND_THRESHOLD` away from its scenery, brighter or darker. Every pixel within `FOREGROUND_MARGIN` of a different one,
# also across
# corners, is foreground and weighs `weight`, the others 1. At last the weights of *each frame* are scaled to average 1.

# %%
def foreground_weights(frames: Tensor, scenery: Tensor, weight: float) -> Tensor | None:
    """float32 (batch, 64, 64, 1), of frames and scenery uint8 (batch, 64, 64, 3)."""
    return None


# %%
print(check_foreground_weights(foreground_weights))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Mind uint8: below 0 it begins again at 255. And `max_pool2d` of a picture of zeros and ones, with stride 1 and a padding, grows
# the ones by a margin.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def foreground_weights(frames: Tensor, scenery: Tensor, weight: float) -> Tensor:
#     """Weight of every pixel in the loss: more in and around what differs from its episode's scenery.
#
#     Around it too, since a picture pays for a halo only there: with the weight on the ship's own pixels alone, a round
#     blob that covers every attitude of the ship costs next to nothing, and z need not know the angle. The weights of a
#     frame average 1, so a large foreground does not drown a frame with a small one, and beta means the same for all.
#
#     Args:
#         frames: uint8 (batch, 64, 64, 3).
#         scenery: The same shape: the median frame of each frame's own episode.
#         weight: How many times a pixel of the foreground weighs as much as one of the scenery.
#
#     Returns:
#         float32 (batch, 64, 64, 1).
#     """
#     difference = torch.maximum(frames, scenery) - torch.minimum(frames, scenery)
#     different = (difference.amax(3) > FOREGROUND_THRESHOLD).float()
#     foreground = max_pool2d(different, 2 * FOREGROUND_MARGIN + 1, 1, FOREGROUND_MARGIN)[..., None]
#     weights = 1 + foreground * (weight - 1)
#     return weights / weights.mean((1, 2, 3), keepdim=True)
# ```
#
# `amax(3)` takes the largest difference of the three colours. For `max_pool2d`, (batch, 64, 64) is one picture for each row of
# the batch.
#
# </details>

# %% [markdown]
# ### Exercise 3.5 · Pointing
# (10 minutes, medium) How does a network say *where*? It gives every pixel a score. The highest score names a place, but of that
# choice nothing can be learnt: it has no gradient. Take all pixels instead, each as much as the softmax of its score, and give their
# mean place. `PIXELS` has the middles of 64 pixels in a row, from −1 to 1, for x from left to right as for y from top to bottom.

# %%
def soft_argmax(score: Tensor) -> Tensor | None:
    """Places (batch, K, 2), x and y, of maps of scores (batch, 64, 64, K); rows come first."""
    return None


# %%
print(check_soft_argmax(soft_argmax))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Rows and columns are two axes, and the softmax runs over both: flatten them into one and unflatten them again. For x the weights of a
# whole column belong together.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def soft_argmax(score: Tensor) -> Tensor:
#     """Where each map of scores is high: the mean place of the pixels, weighted by a softmax over all of them.
#
#     Args:
#         score: (batch, 64, 64, K).
#
#     Returns:
#         (batch, K, 2), x and y from -1 to 1.
#     """
#     weight = score.flatten(1, 2).softmax(1).unflatten(1, (64, 64))
#     x = torch.einsum("bxk,x->bk", weight.sum(1), PIXELS)
#     y = torch.einsum("byk,y->bk", weight.sum(2), PIXELS)
#     return torch.stack([x, y], dim=2)
# ```
#
# </details>

# %% [markdown]
# ## 9. Check yourself
# Answer before you unfold.
#
# 1. **Why does V give a Gaussian for z, and not just a point?**
#
# <details><summary>Answer</summary>
#
# The noise makes neighbouring *z* draw similar frames: whatever lies within σ must be drawn right. Points could be scattered
# anywhere, and what lies between two of them would mean nothing. M will need the space between.
#
# </details>
#
# 2. **What is the KL divergence of a dimension with mu = 0 and σ = 1 for every frame?**
#
# <details><summary>Answer</summary>
#
# 0 nats. It says nothing about the frame, costs nothing, and counts as not active.
#
# </details>
#
# 3. **β is made ten times as large. What happens to the KL divergence and to the drawings?**
#
# <details><summary>Answer</summary>
#
# Every nat costs more, so fewer are spent: the divergence falls, more dimensions are given up, and the drawings lose first what
# saves the least error, small things among them.
#
# </details>
#
# 4. **Why does the foreground have a rim around what moves?**
#
# <details><summary>Answer</summary>
#
# A blurred halo is drawn where the thing might be. If only the thing's own pixels weighed more, the halo around it would be
# nearly free, and *z* need not know exactly where the thing is.
#
# </details>
#
# 5. **Why are whole stretches of play held out, and not single frames?**
#
# <details><summary>Answer</summary>
#
# Frames that follow each other are nearly the same. A held-out frame whose neighbours were trained on tests memory and no more.
#
# </details>

# %% [markdown]
# ## Summary

# %%
print(f"V turns {frames[0].size} numbers into {config.z_dim}, {vae.active_units(latents)} of them active; its weights: {run.directory / 'vae'}")

# %% [markdown]
# - A loss that counts every pixel alike forgets what is small.
# - Taking the background away and weighting the foreground brings it back.
# - Slowness keeps *z* unfolded, so that a small controller can read it.
# - All frames are now latents, computed once; M reads those and never sees a pixel.
#
# ## Next
# [04 MDN-RNN](04_mdn_rnn.ipynb): what comes next, if more than one thing may?
