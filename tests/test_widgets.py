"""What the widgets draw is what V, M, CMA-ES and the real game say; used without a browser, they draw it anew."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import sys

import cv2
import ipywidgets
import numpy as np
import pytest
import torch

from wm_lib.control.agent import RandomAgent
from wm_lib.control.evolution import CMAES
from wm_lib.course import cma_2d, films, play_dream, step_through, widgets
from wm_lib.models.mdn_rnn import MDNRNN
from wm_lib.models.neural import NeuralWorldModel
from wm_lib.models.vae import VAE
from wm_lib.play import draw as draw_panes
from wm_lib.tasks import ACTION_NAMES, TASKS, get_task
from wm_lib.worlds.envs import make_env

LANDER = get_task("lunar-lander")
Z, SEED = 6, 3
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
LATENTS = RNG.normal(0.5, 2.0, (200, Z)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> NeuralWorldModel:
    """V and M of LunarLander, untrained, with mixtures that differ enough to be told apart."""
    torch.manual_seed(0)
    mdn_rnn = MDNRNN(Z, LANDER.num_actions, 8, 3)
    torch.nn.init.normal_(mdn_rnn.mixture.bias, std=2.0)
    torch.nn.init.constant_(mdn_rnn.done.bias, -1.0)
    return NeuralWorldModel(VAE(Z, np.full((64, 64, 3), 0.5)), mdn_rnn, recent_z=2)


@pytest.fixture(scope="module")
def recording() -> films.Recording:
    return films.record(make_env(LANDER, 1, SEED, "gymnasium"), RandomAgent(LANDER.num_actions, 1), 12)


def shown(box: ipywidgets.VBox) -> np.ndarray:
    """The picture in a widget, read back."""
    return cv2.imdecode(np.frombuffer(widgets.picture_of(box).value, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def line(box: ipywidgets.VBox) -> str:
    return box.children[2].value


def everything(box) -> list:
    return [box, *(inner for child in getattr(box, "children", ()) for inner in everything(child))]


def slider(box, description: str):
    (found,) = [w for w in everything(box) if hasattr(w, "min") and w.description == description]
    return found


def click(box, description: str) -> None:
    (found,) = [w for w in everything(box) if isinstance(w, ipywidgets.Button) and w.description == description]
    found.click()


def pane(picture: np.ndarray, row: int, column: int, zoom: int) -> np.ndarray:
    """A frame (64, 64, 3) taken out of a picture that `panes` made."""
    size, height = zoom * 64, zoom * 64 + 2 * 22
    top, left = row * height + 22, column * (size + 2 * zoom)
    return picture[top : top + size : zoom, left : left + size : zoom]


def assert_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Pictures of the same z, drawn in other batches or by more threads: sums are rounded differently."""
    np.testing.assert_allclose(ours.astype(int), theirs.astype(int), atol=1)


# --- Pictures


def test_panes_are_rows_of_what_draws_films():
    rows = [{"a": FRAMES[0], "b": FRAMES[1]}, {"c": FRAMES[2]}]
    picture = widgets.panes(rows, zoom=3)
    top, bottom = draw_panes(FRAMES[:2], ["a", "b"], "", 3), draw_panes(FRAMES[2:], ["c"], "", 3)
    np.testing.assert_array_equal(picture[: len(top)], top)
    np.testing.assert_array_equal(picture[len(top) :, : bottom.shape[1]], bottom)
    assert (picture[len(top) :, bottom.shape[1] :] == 255).all()
    np.testing.assert_array_equal(pane(picture, 1, 0, 3), FRAMES[2])


def test_a_png_holds_the_picture():
    picture = widgets.panes([{"a": FRAMES[0]}])
    png = widgets.to_png(picture)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], picture)


# --- What V draws


def test_sliders_draw_what_the_vae_decodes(model):
    box = widgets.latent_sliders(model.decode, FRAMES[0], LATENTS[0], LATENTS, num=4)
    sliders = [w for w in everything(box) if isinstance(w, ipywidgets.FloatSlider)]
    assert len(sliders) == 4
    before = shown(box)
    np.testing.assert_array_equal(pane(before, 0, 0, 4), FRAMES[0])
    assert_alike(pane(before, 0, 1, 4), model.decode(LATENTS[:1])[0])
    z = LATENTS[0].copy()
    for one, value in zip(sliders, (3.0, -2.5, 1.25, 4.0), strict=True):
        one.value = value
        z[int(one.description[2:-1])] = value
    with torch.inference_mode():
        pixels = model.vae.decode(torch.from_numpy(z[None]))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(pane(shown(box), 0, 1, 4), 255 * pixels, atol=0.6)
    assert line(box) == f"4 of {Z} numbers are turned"
    click(box, "Back to the frame")
    np.testing.assert_array_equal(shown(box), before)


def test_a_slider_reaches_the_frame_wherever_it_lies(model):
    far = LATENTS[0].copy()
    far[2] = 40.0
    box = widgets.latent_sliders(model.decode, FRAMES[0], far, LATENTS, num=Z)
    assert slider(box, "z[2]").value == 40.0 and slider(box, "z[2]").min < LATENTS[:, 2].mean() - 5
    constant = np.zeros((5, Z), np.float32)  # of an untrained V, say
    box = widgets.latent_sliders(model.decode, FRAMES[0], constant[0], constant)
    assert_alike(pane(shown(box), 0, 1, 4), model.decode(constant[:1])[0])


def planted(z: np.ndarray) -> np.ndarray:
    """A V that paints a grey of 100 + 20 z[1] on the left half, 100 + 3 z[4] on a tenth of the right, nothing else."""
    frames = np.full((len(z), 64, 64, 3), 100.0)
    frames[:, :, :32] += 20 * z[:, 1, None, None, None]
    frames[:, :8, 32:] += 3 * z[:, 4, None, None, None]
    return np.clip(frames.round(), 0, 255).astype(np.uint8)


def test_influence_is_how_far_the_pixels_move():
    mean, sigma = np.zeros(Z), np.full(Z, 0.5)
    found = widgets.influence(planted, LATENTS[:2] * 0, mean, sigma)
    # From -1 to 1: 40 on half of the pixels, 6 on a sixteenth.
    np.testing.assert_allclose(found, [0, 20, 0, 0, 6 / 16, 0])


def test_the_explorer_sorts_the_numbers_and_shows_what_moves():
    z = np.zeros((2, Z), np.float32)
    latents = np.stack([np.full(Z, -1.0), np.full(Z, 1.0)]).astype(np.float32)  # mean 0, sigma 1
    box = widgets.which_z(planted, FRAMES[:2], z, latents)
    assert line(box).startswith("z[1], number 1 of 6: moves the pixels by 40.00")
    first = shown(box)
    np.testing.assert_array_equal(pane(first, 0, 0, 2), FRAMES[0])
    for column, turn in enumerate(widgets.TURNS, 1):
        assert pane(first, 0, column, 2)[10, 10, 0] == 100 + 20 * turn
        moved = pane(first, 1, column, 2)
        assert moved[10, 10, 0] == int(255 * abs(turn) / 2) and (moved[:, 32:] == 0).all()
    slider(box, "rank of z").value = 2
    assert line(box).startswith("z[4], number 2 of 6")
    assert pane(shown(box), 0, 5, 2)[4, 40, 0] == 106 and pane(shown(box), 0, 5, 2)[10, 10, 0] == 100
    slider(box, "frame").value = 2
    np.testing.assert_array_equal(pane(shown(box), 0, 0, 2), FRAMES[1])


def test_turning_leaves_the_other_numbers_alone(model):
    rows = widgets.turned(LATENTS[0], 3, 1.0, 2.0)
    np.testing.assert_array_equal(rows[:, 3], [-3, -1, 1, 3, 5])
    np.testing.assert_array_equal(np.delete(rows, 3, 1), np.repeat(np.delete(LATENTS[:1], 3, 1), 5, axis=0))


# --- What M dreams


def test_a_dream_at_a_temperature_is_what_imagine_draws(model):
    action, h = np.arange(8) % LANDER.num_actions, model.step(LATENTS[:1], np.array([1]), model.initial_state(1))
    box = widgets.temperature(model, LATENTS[:1], h, action, SEED)
    for value in (1.0, 0.5, 1.4, 1.0):
        slider(box, "temperature").value = value
        z, memory, rng, paid = LATENTS[:1], h, np.random.default_rng(SEED), 0.0
        for t in range(len(action)):
            z, reward, _, memory = model.imagine(z, action[t : t + 1], memory, value, rng)
            paid += reward[0]
            row, column = divmod(t, widgets.STRIP_COLUMNS)
            assert_alike(pane(shown(box), row, column, 2), model.decode(z)[0])
        assert line(box).startswith(f"temperature {value:.2f}: paid {paid:.2f} in 8 decisions")
    before = shown(box)
    slider(box, "dream no.").value = 2
    assert (shown(box) != before).any()
    again = widgets.temperature(model, LATENTS[:1], h, action, SEED + 1)
    np.testing.assert_array_equal(shown(again), shown(box))


def test_the_dream_says_where_it_ended():
    class Ends:
        def imagine(self, z, action, h, temperature, rng):
            return z, np.ones(1), np.array([action[0] == 3]), h

        def decode(self, z):
            return np.zeros((len(z), 64, 64, 3), np.uint8)

    box = widgets.temperature(Ends(), LATENTS[:1], LATENTS[:1], np.array([0, 3, 1]))
    assert line(box).endswith("paid 3.00 in 3 decisions, M thinks the episode ended at +2")


# --- Step by step


def test_futures_are_the_most_probable_choices_that_differ():
    rng = np.random.default_rng(1)
    for _ in range(20):
        log_pi, mu, log_sigma = rng.normal(size=(3, 4, 3))
        log_pi -= np.logaddexp.reduce(log_pi, axis=1, keepdims=True)
        likeliest = log_pi.argmax(1)
        brute = []
        for choice in itertools.product(range(3), repeat=4):
            apart = [
                k == best or abs(mu[d, k] - mu[d, best]) > np.exp(max(log_sigma[d, k], log_sigma[d, best]))
                for d, (k, best) in enumerate(zip(choice, likeliest, strict=True))
            ]
            if all(apart):
                brute.append((sum(log_pi[d, k] for d, k in enumerate(choice)), choice))
        brute.sort(reverse=True)
        z, log_p = step_through.futures(log_pi, mu, log_sigma, 4)
        assert len(z) == min(4, len(brute))
        np.testing.assert_allclose(log_p, [p for p, _ in brute[:4]])
        np.testing.assert_allclose(z, [[mu[d, k] for d, k in enumerate(c)] for _, c in brute[:4]], rtol=1e-6)


def test_the_first_future_is_the_dream_at_temperature_zero(model):
    h = model.step(LATENTS[:1], np.array([2]), model.initial_state(1))
    action = np.array([1])
    log_pi, mu, log_sigma, reward, end = model.predict(LATENTS[1:2], action, h)
    likeliest, paid, _, _ = model.imagine(LATENTS[1:2], action, h, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(step_through.futures(log_pi[0], mu[0], log_sigma[0])[0][:1], likeliest)
    assert reward == paid and 0 < end[0] < 1
    ended = [model.imagine(LATENTS[1:2], action, h, 1.0, np.random.default_rng(seed))[2][0] for seed in range(400)]
    assert np.mean(ended) == pytest.approx(end[0], abs=0.08)


def test_memories_forget_where_an_episode_begins(model):
    action, first = np.array([0, 1, 2, 3]), np.array([True, False, True, False])
    found = step_through.memories(model, LATENTS[:4], action, first)
    assert (found[[0, 2]] == 0).all()
    np.testing.assert_array_equal(found[1:2], model.step(LATENTS[:1], action[:1], model.initial_state(1)))
    np.testing.assert_array_equal(found[3:], model.step(LATENTS[2:3], action[2:3], model.initial_state(1)))


def test_an_episode_is_gone_through(model, recording):
    box = step_through.widget(LANDER, model, recording)
    number = slider(box, "decision")
    assert (number.value, number.max) == (0, 10)
    click(box, "Previous")
    assert number.value == 0
    seen = []
    for t in range(11):
        picture, (frames, action, reward) = shown(box), (column[:, 0] for column in recording[:3])
        np.testing.assert_array_equal(pane(picture, 0, 0, 3), frames[t])
        assert_alike(pane(picture, 0, 1, 3), model.decode(model.encode(frames[t][None]))[0])
        np.testing.assert_array_equal(pane(picture, 0, 2, 3), frames[t + 1])
        name = ACTION_NAMES["lunar-lander"][action[t]]
        assert line(box).startswith(f"decision {t}: the agent chose {name}, was paid {reward[t]:.2f} ")
        seen.append(widgets.picture_of(box).value)
        click(box, "Next")
    assert number.value == 10 and len(set(seen)) == 11
    number.value = 4
    assert widgets.picture_of(box).value == seen[4]


# --- CMA-ES


def test_generations_are_those_of_cma():
    import cma

    found = cma_2d.evolve(0.7, SEED, 15)
    rng = np.random.default_rng(SEED)
    options = {"popsize": cma_2d.POPULATION, "randn": lambda *shape: rng.standard_normal(shape), "seed": np.nan}
    options |= {"verbose": -9, "verb_log": 0, "CMA_elitist": False}
    strategy = cma.CMAEvolutionStrategy(cma_2d.START, 0.7, options)
    for generation in found:
        np.testing.assert_array_equal(generation.mean, strategy.mean)
        np.testing.assert_allclose(generation.covariance, strategy.sigma**2 * strategy.C)
        candidates = strategy.ask()
        np.testing.assert_array_equal(generation.candidates, candidates)
        strategy.tell(candidates, [cma.ff.rosen(x[::1]) for x in candidates])
    assert cma_2d.fitness(np.ones(2)) == 0
    ours, theirs = cma_2d.fitness(candidates[0]), -cma.ff.rosen(candidates[0])
    assert ours == pytest.approx(theirs)


def test_the_covariance_is_that_of_the_candidates():
    search = CMAES(np.zeros(2), 4000, 0.5, 0)
    for _ in range(3):
        candidates = search.ask()
        search.tell(-np.square(candidates @ np.array([[1.0, 0.0], [0.9, 0.2]])).sum(1))
    expected = np.cov(search.ask().T)
    np.testing.assert_allclose(search.covariance, expected, atol=0.1 * expected.max())


def test_the_ellipse_is_that_of_the_covariance():
    turn = np.radians(30)
    axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    width, height, angle = cma_2d.ellipse(axes @ np.diag([1.0, 9.0]) @ axes.T)
    assert (width, height) == pytest.approx((2.0, 6.0)) and angle % 180 == pytest.approx(30)


def test_generations_are_stepped_through_and_begun_anew():
    box = cma_2d.widget(SEED)
    pictures = [widgets.picture_of(box).value]
    for _ in range(3):
        click(box, "Next")
        pictures.append(widgets.picture_of(box).value)
    click(box, "Previous")
    assert widgets.picture_of(box).value == pictures[2] and len(set(pictures)) == 4
    mean = cma_2d.evolve(cma_2d.SIGMA, SEED)[2].mean
    assert f"generation 3: mean ({mean[0]:.3f}, {mean[1]:.3f})" in line(box)
    slider(box, "first sigma").value = 0.1
    mean = cma_2d.evolve(0.1, SEED)[2].mean
    assert f"generation 3: mean ({mean[0]:.3f}, {mean[1]:.3f})" in line(box)
    slider(box, "generation").value = cma_2d.GENERATIONS
    click(box, "Next")
    assert slider(box, "generation").value == cma_2d.GENERATIONS


# --- Play the dream


def test_every_action_has_a_name():
    assert {name: len(names) for name, names in ACTION_NAMES.items()} == {n: t.num_actions for n, t in TASKS.items()}
    for name in ("pong", "breakout"):
        env = make_env(TASKS[name], 1, 0, "gymnasium")
        meanings = env.envs[0].unwrapped.get_action_meanings()
        env.close()
        assert [meanings[native] for native in TASKS[name].actions] == ["NOOP", "RIGHT", "LEFT"]
    for name, (steering, _, _) in zip(ACTION_NAMES["car-racing"], TASKS["car-racing"].actions, strict=True):
        assert ("left" in name, "right" in name) == (steering < 0, steering > 0)


def test_both_worlds_begin_alike_and_obey_the_same_actions(model):
    box = play_dream.widget(LANDER, model, SEED)
    env, h = make_env(LANDER, 1, SEED, "gymnasium"), model.initial_state(1)
    obs, _ = env.reset()
    for _ in range(play_dream.WATCH):
        h = model.step(model.encode(obs), np.array([0]), h)
        obs, *_ = env.step(np.array([0]))
    z, rng = model.encode(obs), np.random.default_rng(SEED)
    rng.integers(1, size=1)  # which of one moment the dream begins at
    np.testing.assert_array_equal(pane(shown(box), 0, 0, 4), obs[0])
    assert_alike(pane(shown(box), 0, 1, 4), model.decode(z)[0])
    really = dreamt = 0.0
    for t, action in enumerate((2, 1, 3, 0), 1):
        click(box, ACTION_NAMES["lunar-lander"][action])
        obs, reward, *_ = env.step(np.array([action]))
        z, paid, _, h = model.imagine(z, np.array([action]), h, 1.0, rng, 0.5)
        really, dreamt = really + reward[0], dreamt + paid[0]
        np.testing.assert_array_equal(pane(shown(box), 0, 0, 4), obs[0])
        assert_alike(pane(shown(box), 0, 1, 4), model.decode(z)[0])
        assert f"decision {t}. Paid: really {really:.2f}, in the dream {dreamt:.2f}." in line(box)
    env.close()

    click(box, "Dream from here")
    assert_alike(pane(shown(box), 0, 1, 4), model.decode(model.encode(obs))[0])
    assert "decision 0. Paid: really 0.00, in the dream 0.00." in line(box)
    slider(box, "a click is").value = 5
    click(box, "nothing")
    assert "You chose: nothing. decision 5." in line(box)
    before = widgets.picture_of(box).value
    click(box, "New game")
    assert widgets.picture_of(box).value != before and "A new game. decision 0" in line(box)


def test_what_has_ended_stands_still_and_says_so(model):
    worlds = play_dream.BothWorlds(LANDER, model, SEED)
    worlds._dreams.done_threshold = 0.0  # M thinks so at once
    worlds.act(0)
    assert worlds.ended.tolist() == [False, True]
    dreamt, paid = worlds.pictures()[1], worlds.returns[1]
    while not worlds.ended[0]:  # falls
        worlds.act(0)
    frame, returns = worlds.frame, worlds.returns.copy()
    worlds.act(2)
    np.testing.assert_array_equal(worlds.pictures(), np.stack([frame, dreamt]))
    assert worlds.returns.tolist() == returns.tolist() and returns[1] == paid
    assert returns[0] < -50  # it crashed
    worlds.new_game(SEED)
    assert worlds.ended.tolist() == [False, False]
    worlds.close()


def test_the_memory_goes_on_with_the_real_game(model):
    """The dream that begins anew after some decisions is the one that has seen them all."""
    worlds = play_dream.BothWorlds(LANDER, model, SEED)
    env, h = make_env(LANDER, 1, SEED, "gymnasium"), model.initial_state(1)
    obs, _ = env.reset()
    for action in [0] * play_dream.WATCH + [2, 3, 2]:
        h = model.step(model.encode(obs), np.array([action]), h)
        obs, *_ = env.step(np.array([action]))
    for action in (2, 3, 2):
        worlds.act(action)
    worlds.dream_from_here()
    np.testing.assert_array_equal(worlds._dreams.h, h)
    np.testing.assert_array_equal(worlds._dreams.z, model.encode(obs))
    env.close()
    worlds.close()


# --- What the page gets


def test_one_thread_draws_and_the_others_come_back():
    threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    number = ipywidgets.IntSlider(0)

    def draw() -> tuple[np.ndarray, str]:
        seen.append(torch.get_num_threads())
        if number.value == 2:
            raise ValueError("cannot draw")
        return FRAMES[0], "a < b"

    box = widgets.assemble("test", draw, [number], "Noise")
    number.value = 1
    with pytest.raises(ValueError):
        number.value = 2
    assert seen == [1, 1, 1] and torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert line(box) == "a &lt; b" and repr(widgets.show(box)) == "Noise. a < b"


@pytest.fixture(params=["latent-sliders", "which-z", "temperature", "step-through", "cma-2d", "play-dream"])
def each(request, model, recording) -> tuple[str, ipywidgets.VBox]:
    makers = {
        "latent-sliders": lambda: widgets.latent_sliders(model.decode, FRAMES[0], LATENTS[0], LATENTS),
        "which-z": lambda: widgets.which_z(model.decode, FRAMES, LATENTS[:3], LATENTS),
        "temperature": lambda: widgets.temperature(model, LATENTS[:1], model.initial_state(1), np.zeros(3, int)),
        "step-through": lambda: step_through.widget(LANDER, model, recording),
        "cma-2d": lambda: cma_2d.widget(),
        "play-dream": lambda: play_dream.widget(LANDER, model),
    }
    return request.param, makers[request.param]()


def test_the_page_can_find_it_and_has_a_picture_without_widgets(each):
    name, box = each
    assert {"wm-widget", f"wm-{name}"} <= set(box._dom_classes)
    (image,) = [w for w in everything(box) if isinstance(w, ipywidgets.Image)]
    assert image is widgets.picture_of(box) and image.format == "png"
    data, metadata = widgets.show(box)._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == box.model_id
    assert base64.b64decode(data["image/png"]) == image.value
    assert data["text/plain"] == metadata["image/png"]["alt"] == image.alt and len(image.alt) > 40
    assert max(shown(box).shape[:2]) < 1000  # fits a screen
    json.dumps([data, metadata])


def test_importing_brings_no_torch():
    names = ("widgets", "cma_2d", "step_through", "play_dream")
    program = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module("wm_lib.course." + name)
sys.exit(bool({{"torch", "gymnasium", "ipywidgets", "cv2"}} & sys.modules.keys()))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0
