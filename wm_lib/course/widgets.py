"""Pictures that answer to a slider: what V draws for z, and what M dreams at a temperature.

Each widget is a plain drawing function, arrays in and a picture out, under a thin layer of ipywidgets. End a cell with
`show(...)`: it is alive in JupyterLab, and where there is no front-end for widgets (papermill, nbmake, a page on the
web) its picture stands there. The widgets of notebooks 05, 06 and 08 live in `cma_2d`, `play_dream` and `step_through`.
"""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_lib.models.world_model import WorldModel

if TYPE_CHECKING:
    from ipywidgets import DOMWidget, Image, VBox

Decode = Callable[[np.ndarray], np.ndarray]  # frames uint8 (batch, 64, 64, 3) of z float32 (batch, z_dim)

TURNS = (-2, -1, 0, 1, 2)  # standard deviations
STRIP_COLUMNS = 6
NUM_DRAWS = 10  # random numbers to choose from for a dream
WIDE = {"description_width": "initial"}  # a slider's word is not cut short


# --- What V draws for z


def draw_latents(decode: Decode, frame: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A frame (64, 64, 3) beside what V draws for z (z_dim,): uint8 (height, width, 3)."""
    return panes([{"the frame": frame, "V draws": decode(z[None])[0]}], zoom=4)


def turned(z: np.ndarray, unit: int, mean: float, sigma: float) -> np.ndarray:
    """z (z_dim,) with one unit at `TURNS` standard deviations from its mean: float32 (len(TURNS), z_dim)."""
    rows = np.repeat(np.asarray(z, np.float32)[None], len(TURNS), axis=0)
    rows[:, unit] = mean + sigma * np.array(TURNS)
    return rows


def influence(decode: Decode, z: np.ndarray, mean: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """How much each unit moves the picture, float64 (z_dim,).

    Args:
        decode: V.
        z: (n, z_dim), of the frames that are looked at.
        mean, sigma: (z_dim,), of the data.

    Returns:
        Mean difference of the pixels, of 255, between the unit at two standard deviations below and above its mean.
    """
    found = np.zeros(z.shape[1])
    for unit in range(z.shape[1]):
        ends = np.concatenate([turned(row, unit, mean[unit], sigma[unit])[[0, -1]] for row in z])
        drawn = decode(ends).astype(np.int16)
        found[unit] = np.abs(drawn[::2] - drawn[1::2]).mean()
    return found


def draw_turns(decode: Decode, frame: np.ndarray, z: np.ndarray, unit: int, mean: float, sigma: float) -> np.ndarray:
    """A frame (64, 64, 3), what V draws while one unit of its z (z_dim,) turns, and below what moves.

    The differences are from what V draws for z itself, and all are brightened alike: the largest is white.

    Returns:
        uint8 (height, width, 3).
    """
    drawn = decode(np.concatenate([z[None], turned(z, unit, mean, sigma)]))
    apart = np.abs(drawn[1:].astype(np.int16) - drawn[0])
    apart = (apart * (255 / max(1, apart.max()))).astype(np.uint8)
    names = [f"{turn:+d} sigma" if turn else "mean" for turn in TURNS]
    return panes(
        [
            {"the frame": frame, **dict(zip(names, drawn[1:], strict=True))},
            {"V draws": drawn[0], **dict(zip((f"difference, {name}" for name in names), apart, strict=True))},
        ]
    )


# --- What M dreams


def dream(
    world_model: WorldModel, z: np.ndarray, h: np.ndarray, action: np.ndarray, temperature: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A dream from one moment under given actions; the same seed draws the same random numbers at any temperature.

    Args:
        world_model: M.
        z, h: The moment, (1, z_dim) and (1, state_dim).
        action: Integers (time,).
        temperature: Uncertainty of the dream, at least 0.
        seed: Of everything drawn.

    Returns:
        z after each action (time, z_dim), reward (time,) and terminated (time,).
    """
    rng, rows = np.random.default_rng(seed), []
    for a in action:
        z, reward, terminated, h = world_model.imagine(z, np.array([a]), h, temperature, rng)
        rows.append((z[0], reward[0], terminated[0]))
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def draw_dream(decode: Decode, z: np.ndarray) -> np.ndarray:
    """The film strip of a dream, z (time, z_dim), in rows of `STRIP_COLUMNS`: uint8 (height, width, 3)."""
    frames = {f"+{t}": frame for t, frame in enumerate(decode(z), 1)}
    names = list(frames)
    rows = [names[start : start + STRIP_COLUMNS] for start in range(0, len(names), STRIP_COLUMNS)]
    return panes([{name: frames[name] for name in row} for row in rows])


# --- The widgets


def latent_sliders(decode: Decode, frame: np.ndarray, z: np.ndarray, latents: np.ndarray, num: int = 8) -> VBox:
    """Sliders for the numbers of z that move the picture most; V draws at every touch.

    Args:
        decode: V.
        frame: uint8 (64, 64, 3), where it begins.
        z: (z_dim,), of this frame.
        latents: (n, z_dim), of the data, for the sliders' ranges: three standard deviations around the mean.
        num: Sliders, at most.
    """
    import ipywidgets

    mean, sigma = latents.mean(0), latents.std(0)
    units = np.argsort(-influence(decode, z[None], mean, sigma), kind="stable")[:num]
    start = np.asarray(z, np.float32)
    sliders = []
    for unit in units:
        low, high = mean[unit] - 3 * sigma[unit], mean[unit] + 3 * sigma[unit]
        low, high, value = float(min(low, z[unit])), float(max(high, z[unit])), float(z[unit])
        sliders.append(
            ipywidgets.FloatSlider(value, min=low, max=high, step=(high - low) / 100 or 1.0, description=f"z[{unit}]")
        )

    def draw() -> tuple[np.ndarray, str]:
        now = start.copy()
        for unit, slider in zip(units, sliders, strict=True):
            if abs(slider.value - z[unit]) > slider.step / 2:  # JupyterLab rounds untouched ones to whole steps as well
                now[unit] = slider.value
        return draw_latents(decode, frame, now), f"{np.count_nonzero(now != start)} of {len(z)} numbers are turned"

    def back(_: Any) -> None:
        for unit, slider in zip(units, sliders, strict=True):
            slider.value = float(z[unit])

    button = ipywidgets.Button(description="Back to the frame")
    button.on_click(back)
    description = f"A frame, and what V draws for its z; the sliders turn the {len(units)} numbers that matter most"
    return assemble("latent-sliders", draw, sliders, description, ipywidgets.VBox([*sliders, button]))


def which_z(decode: Decode, frames: np.ndarray, z: np.ndarray, latents: np.ndarray) -> VBox:
    """Turn one number of z from low to high and see what moves; those that move the picture most come first.

    Args:
        decode: V.
        frames: uint8 (n, 64, 64, 3), to choose from.
        z: (n, z_dim), of these frames.
        latents: (m, z_dim), of the data, for the mean and the standard deviation of each number.
    """
    import ipywidgets

    mean, sigma = latents.mean(0), latents.std(0)
    moves = influence(decode, z, mean, sigma)
    order = np.argsort(-moves, kind="stable")
    rank = ipywidgets.IntSlider(1, min=1, max=len(order), description="rank of z")
    which = ipywidgets.IntSlider(1, min=1, max=len(frames), description="frame")

    def draw() -> tuple[np.ndarray, str]:
        unit, n = order[rank.value - 1], which.value - 1
        words = (
            f"z[{unit}], number {rank.value} of {len(order)}: moves the pixels by {moves[unit]:.2f} of 255 on average"
        )
        return draw_turns(decode, frames[n], z[n], unit, mean[unit], sigma[unit]), words

    description = "V's drawings of a frame while one number of z goes from -2 to +2 sigma, and below what moves"
    return assemble("which-z", draw, [rank, which], description)


def temperature(world_model: WorldModel, z: np.ndarray, h: np.ndarray, action: np.ndarray, seed: int = 0) -> VBox:
    """A dream that is dreamt anew at every temperature, with the same random numbers.

    Args: as for `dream`; the second slider adds to `seed`.
    """
    import ipywidgets

    bold = ipywidgets.FloatSlider(1.0, min=0.5, max=1.5, step=0.05, description="temperature", style=WIDE)
    numbers = ipywidgets.IntSlider(1, min=1, max=NUM_DRAWS, description="dream no.")

    def draw() -> tuple[np.ndarray, str]:
        dreamt, reward, terminated = dream(world_model, z, h, action, bold.value, seed + numbers.value - 1)
        ended = f"M thinks the episode ended at +{terminated.argmax() + 1}" if terminated.any() else "no end"
        words = f"temperature {bold.value:.2f}: paid {reward.sum():.2f} in {len(action)} decisions, {ended}"
        return draw_dream(world_model.decode, dreamt), words

    description = f"The {len(action)} frames of a dream under the actions really taken"
    return assemble("temperature", draw, [bold, numbers], description)


# --- What all widgets share


def show(widget: VBox) -> Shown:
    """What a cell ends with: the widget, and its picture wherever there are no widgets."""
    return Shown(widget)


class Shown:
    """A widget, as a notebook shows it; in text it is its description."""

    def __init__(self, widget: VBox) -> None:
        self.widget = widget

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        picture = picture_of(self.widget)
        data = self.widget._repr_mimebundle_() | {
            "image/png": base64.b64encode(picture.value).decode(),
            "text/plain": repr(self),
        }
        return data, {"image/png": {"alt": picture.alt}}

    def __repr__(self) -> str:
        return picture_of(self.widget).alt


def picture_of(widget: VBox) -> Image:
    """The picture in what `assemble` made; its `alt` says what is to be seen."""
    return widget.children[1]


def assemble(
    name: str,
    draw: Callable[[], tuple[np.ndarray, str]],
    controls: Sequence[DOMWidget],
    description: str,
    layout: DOMWidget | None = None,
) -> VBox:
    """Controls above a picture that is drawn again whenever one of them is used.

    Args:
        name: The box gets the DOM classes `wm-widget` and `wm-<name>`.
        draw: Reads the controls; returns the picture uint8 (height, width, 3) and a line about it.
        controls: Buttons, and widgets with a value.
        description: What is to be seen, for those who cannot see it.
        layout: What stands above the picture; the controls in a row if None.
    """
    import ipywidgets

    image, line = (
        ipywidgets.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"}),
        ipywidgets.HTML(),
    )

    def redraw(_: Any = None) -> None:
        with _one_thread():
            picture, words = draw()
        line.value = html.escape(words)
        image.alt = f"{description}. {words}"  # not its tooltip: in JupyterLab an Image with one is not shown at all
        image.value = to_png(picture)

    for control in controls:
        if isinstance(control, ipywidgets.Button):
            control.on_click(redraw)
        else:
            control.observe(redraw, "value")
    redraw()
    box = ipywidgets.VBox([layout or ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"}), image, line])
    box.add_class("wm-widget")
    box.add_class(f"wm-{name}")
    return box


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch work alone: a frame is too little to share, and to wait for a busy core takes longer than the work."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def stepper(slider: DOMWidget) -> DOMWidget:
    """A slider over whole numbers, with buttons that go to the previous and the next one."""
    import ipywidgets

    previous, following = (ipywidgets.Button(description=word) for word in ("Previous", "Next"))

    def go(by: int) -> None:
        slider.value = min(max(slider.value + by, slider.min), slider.max)

    previous.on_click(lambda _: go(-1))
    following.on_click(lambda _: go(1))
    return ipywidgets.HBox([previous, following, slider], layout={"flex_flow": "row wrap"})


def panes(rows: Sequence[Mapping[str, np.ndarray]], zoom: int = 2) -> np.ndarray:
    """Rows of frames under their titles, title -> (64, 64, 3), enlarged: uint8 (height, width, 3)."""
    from wm_lib.play import draw

    drawn = [draw(np.stack(list(row.values())), list(row), "", zoom) for row in rows]
    width = max(row.shape[1] for row in drawn)
    filled = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in drawn]
    return np.concatenate(filled)


def to_png(picture: np.ndarray) -> bytes:
    """The content of a PNG file of a picture uint8 (height, width, 3); packed for speed, not for size."""
    import cv2

    return cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
