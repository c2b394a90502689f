"""Environment ``broken:Broken-v0``: on rank 1 (or the only one) its 25th step goes wrong, in the way ``fault`` names.

Just before, it writes its process id to the file $EVENT.
"""

import os
import signal
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from distqtrl.allreduce.connect import announced

CHOSEN = announced("size", without=1) == 1 or announced("rank", without=0) == 1


class Broken(gymnasium.Env):
    """Ten steps of nothing, over and over."""

    observation_space = Box(-1.0, 1.0, (2,), np.float64)
    action_space = Discrete(2)

    def __init__(self, fault: str):
        self.fault, self.steps = fault, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2), {}

    def step(self, action):
        self.steps += 1
        obs, reward = self.np_random.uniform(-1, 1, 2), float(action)
        if CHOSEN and self.steps == 25:
            Path(os.environ["EVENT"]).write_text(str(os.getpid()))
            if self.fault == "exception":
                raise RuntimeError("the motor is on fire")
            if self.fault == "exit":
                sys.exit(0)
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.fault == "hang":
                time.sleep(600)
            if self.fault == "observation":
                obs[0] = np.nan
            if self.fault == "reward":
                reward = float("nan")
        return obs, reward, False, self.steps % 10 == 0, {}


gymnasium.register("Broken-v0", entry_point=Broken)
