"""Environment ``paced:Paced-v0``: random observations, rewards for matching them, and $PACE_S seconds per step."""

import os
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

PACE_S = float(os.environ.get("PACE_S", "0"))


class Paced(gymnasium.Env):
    """Twelve steps an episode; action 1 is right where the first observation is positive."""

    observation_space = Box(-1.0, 1.0, (2,), np.float64)
    action_space = Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.obs = 0, self.np_random.uniform(-1, 1, 2)
        return self.obs, {}

    def step(self, action):
        time.sleep(PACE_S)
        reward = float((self.obs[0] > 0) == action)
        self.steps, self.obs = self.steps + 1, self.np_random.uniform(-1, 1, 2)
        return self.obs, reward, False, self.steps == 12, {}


gymnasium.register("Paced-v0", entry_point=Paced)
