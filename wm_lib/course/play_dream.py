"""Play the dream: the real game and M's dream of it side by side, under the same actions.

Both begin at the same real frames. From there the game goes on by its own rules, and M by what it has learned of them.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from wm_lib.course.widgets import assemble, panes
from wm_lib.models.world_model import WorldModel
from wm_lib.tasks import ACTION_NAMES, Task
from wm_lib.worlds import make_env
from wm_lib.worlds.dreaming import Dreams

if TYPE_CHECKING:
    from ipywidgets import Button, VBox

WATCH = 16  # decisions of doing nothing, in which M looks on
MOST = 10  # decisions for a click


class BothWorlds:
    """A real game, and a dream that gets the same actions.

    Args:
        task: What is played.
        world_model: V and M.
        seed: Of the first game, and of the dream.
        temperature: Of the dream.
        backend: Of the real game, see `make_env`.

    Attributes:
        frame: The real game now, uint8 (64, 64, 3).
        returns: What the real game and the dream have paid since they parted.
        ended: Whether the real game is over, and whether M thinks that it is; what has ended stands still.
        decisions: Since the two parted.
    """

    def __init__(
        self, task: Task, world_model: WorldModel, seed: int = 0, temperature: float = 1.0, backend: str = "gymnasium"
    ) -> None:
        self.task, self.world_model, self.seed, self.temperature = task, world_model, seed, temperature
        self._env = make_env(task, 1, seed, backend)
        self.new_game(seed)

    def new_game(self, seed: int) -> None:
        """Begin again with another game; M looks on for `WATCH` decisions before the dream begins."""
        obs, _ = self._env.reset(seed=[seed])
        self.frame, self._h = obs[0], self.world_model.initial_state(1)
        self._over = False
        for _ in range(WATCH):
            self._play(0)
        self.dream_from_here()

    def dream_from_here(self) -> None:
        """Let the dream begin again where the real game is."""
        z = self.world_model.encode(self.frame[None])
        # It ends where M holds the end for likelier than not: drawn, it would come by chance sooner or later.
        self._dreams = Dreams(
            self.world_model, z, 1, self.task.max_decisions, self.temperature, self.task.num_actions, self.seed, 0.5
        )
        self._dreams.reset()
        self._dreams.h = self._h.copy()
        self.returns, self.decisions = np.zeros(2), 0
        self.ended = np.array([self._over, False])

    def act(self, action: int) -> None:
        """One decision in both worlds."""
        self._dreams.temperature = self.temperature
        _, dreamt, terminated, _, _ = self._dreams.step(np.array([action]))
        self.returns += self._play(action), dreamt[0]
        self.ended = np.array([self._over, terminated[0]])
        self.decisions += 1

    def _play(self, action: int) -> float:
        """One decision in the real game, remembered by M; its reward."""
        if self._over:
            return 0.0
        taken = np.array([action])
        self._h = self.world_model.step(self.world_model.encode(self.frame[None]), taken, self._h)
        obs, reward, terminated, truncated, _ = self._env.step(taken)
        self.frame, self._over = obs[0], bool(terminated[0] | truncated[0])
        return float(reward[0])

    def pictures(self) -> np.ndarray:
        """The real game and the dream, uint8 (2, 64, 64, 3)."""
        return np.stack([self.frame, self._dreams.render()[0]])

    def close(self) -> None:
        """Close the real game."""
        self._env.close()


def draw_worlds(pictures: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """The real game on the left and the dream on the right, (2, 64, 64, 3): uint8 (height, width, 3)."""
    titles = ("the real game" + ", ended" * bool(ended[0]), "M's dream" + ": M thinks it ended" * bool(ended[1]))
    return panes([dict(zip(titles, pictures, strict=True))], zoom=4)


def widget(task: Task, world_model: WorldModel, seed: int = 0, backend: str = "gymnasium") -> VBox:
    """Play both worlds: a button for each action (Tab and Enter will do, too).

    Args: as for `BothWorlds`.
    """
    import ipywidgets

    worlds = BothWorlds(task, world_model, seed, backend=backend)
    times = ipywidgets.IntSlider(1, min=1, max=MOST, description="a click is")
    bold = ipywidgets.FloatSlider(1.0, min=0.0, max=1.5, step=0.05, description="temperature")
    last = {"words": "", "game": seed}

    def draw() -> tuple[np.ndarray, str]:
        worlds.temperature = bold.value
        real, dreamt = worlds.returns
        words = f"{last['words']}decision {worlds.decisions}. Paid: really {real:.2f}, in the dream {dreamt:.2f}."
        words += " The episode ended." * bool(worlds.ended[0]) + " M thinks the episode ended." * bool(worlds.ended[1])
        return draw_worlds(worlds.pictures(), worlds.ended), words

    def button(name: str, do: Callable[[], None], tooltip: str) -> Button:
        made = ipywidgets.Button(description=name, tooltip=tooltip)
        made.on_click(lambda _: do())
        return made

    def act(action: int, name: str) -> None:
        for _ in range(times.value):
            worlds.act(action)
        last["words"] = f"You chose: {name}. "

    def new_game() -> None:
        last.update(words="A new game. ", game=last["game"] + 1)
        worlds.new_game(last["game"])

    def wake() -> None:
        last["words"] = "The dream begins here. "
        worlds.dream_from_here()

    actions = [
        button(name, lambda a=a, name=name: act(a, name), f"action {a} in both worlds")
        for a, name in enumerate(ACTION_NAMES[task.name])
    ]
    others = [
        button("Dream from here", wake, "the dream begins again where the real game is"),
        button("New game", new_game, "another real game, and a dream of it"),
    ]
    layout = {"flex_flow": "row wrap"}
    head = ipywidgets.HTML(html.escape(f"{task.name}: the same actions in both worlds; a click is so many decisions"))
    controls = ipywidgets.VBox(
        [head, *(ipywidgets.HBox(row, layout=layout) for row in (actions, [*others, times, bold]))]
    )
    description = f"{task.name}: the real game on the left, M's dream of it on the right"
    return assemble("play-dream", draw, [*actions, *others, bold], description, controls)
