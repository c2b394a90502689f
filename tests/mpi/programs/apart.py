"""Environments of which every rank makes another one: apart/Agents, apart:Wide-v0, apart:Long-v0; Lost fails."""

import gymnasium
import numpy as np
from games import Game
from gymnasium.spaces import Box, Discrete

from distqtrl.allreduce.connect import announced

RANK = announced("rank", without=0)


class Agents(Game):
    """Their order is a set's: another one in every process."""

    names = ("a", "b") if RANK == 0 else ("b", "a")


class Wide(gymnasium.Env):
    action_space = Discrete(2)

    def __init__(self, width=2 + RANK):
        self.observation_space = Box(-1, 1, (width,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(self.observation_space.shape, np.float32), {}


class Lost(Wide):
    def __init__(self):
        super().__init__(2)

    def reset(self, *, seed=None, options=None):
        raise KeyError("robot")


gymnasium.register("Wide-v0", Wide)
gymnasium.register("Long-v0", lambda: Wide(2), max_episode_steps=10 + RANK)
gymnasium.register("Lost-v0", Lost)
