"""A Gymnasium environment that draws what it counts: drawn:Drawn-v0 for environment.id."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

SHADE = 60  # of one step


class Drawn(gymnasium.Env):
    """Observes k, the number of steps, and draws it as a picture of the shade 60 k; step k pays k, the last one ends.

    fps: in its metadata (None: it says nothing). broken: what it draws in place of its picture, or raises.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's declaration)

    def __init__(self, render_mode=None, length=3, shape=(4, 6, 3), fps=None, modes=("rgb_array",), broken=None):
        assert render_mode in (None, *modes), "asked for what it does not offer"
        self.metadata = {"render_modes": list(modes)} | ({} if fps is None else {"render_fps": fps})
        self.render_mode, self.length, self.shape, self.broken = render_mode, length, shape, broken
        self.observation_space, self.action_space = Box(0, np.inf, (1,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.k = 0
        print("a new episode")  # as pygame greets: no part of what a program reads
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.k += 1
        return np.full(1, self.k, np.float32), float(self.k), self.k == self.length, False, {}

    def render(self):
        if self.broken == "raises" and self.k == 2:
            raise RuntimeError("no\nscreen")
        if self.broken == "pygame":
            raise gymnasium.error.DependencyNotInstalled("pygame is not installed, run `pip install ...`")
        pictures = {None: np.full(self.shape, SHADE * self.k % 256, np.uint8), "none": None, "flat": np.zeros((4, 6))}
        return pictures.get(self.broken, pictures[None])


if "Drawn-v0" not in gymnasium.registry:  # pytest, looking for doctests, imports this file under another name, too
    gymnasium.register("Drawn-v0", "drawn:Drawn")
