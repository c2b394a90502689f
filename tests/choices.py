"""Small environments whose actions are several choices at once, or masked; choices:Levers-v0 and so on."""

from typing import ClassVar

import gymnasium
import numpy as np
from games import Game
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

ACTIONS = {
    "levers": lambda: MultiDiscrete([3, 2, 4], dtype=np.int32, start=[0, 1, -2]),
    "switches": lambda: MultiBinary((2, 2)),
    "number": lambda: Discrete(5, start=-1),
    "one": lambda: MultiDiscrete([3]),
}


def size(space):
    if isinstance(space, Discrete):
        return int(space.n)
    return int(np.sum(space.nvec)) if isinstance(space, MultiDiscrete) else 2 * int(np.prod(space.shape))


class Levers(gymnasium.Env):
    """Six steps of one of two pictures, each of which wants another action: what is paid is the part that is right."""

    def __init__(self, action="levers"):
        self.action_space, self.observation_space = ACTIONS[action](), Box(-1, 1, (2,), np.float32)
        self.wanted = [self.action_space.sample() for seed in (3, 5) if self.action_space.seed(seed)]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.k = 0
        return self.seen(), {}

    def seen(self):
        self.picture = int(self.np_random.integers(2))
        return np.eye(2, dtype=np.float32)[self.picture]

    def step(self, action):
        assert self.action_space.contains(action), action
        assert np.asarray(action).dtype == self.action_space.dtype, action
        self.k += 1
        reward = float(np.mean(action == self.wanted[self.picture]))
        return self.seen(), reward, self.k == 6, False, {}


class Doors(gymnasium.Env):
    """Six steps; about half of the choices are allowed in each, and any other one is an error.

    What pays is a high number. part: how the observation is nested; stuck: the step after which nothing is allowed.
    """

    def __init__(self, action="number", part="observation", mask="box", stuck=-1):
        self.action_space, self.stuck, self.part = ACTIONS[action](), stuck, part
        self.num = size(self.action_space)
        masks = {
            "box": Box(0, 1, (self.num,), np.int8),
            "binary": MultiBinary(self.num),
            "short": Box(0, 1, (self.num - 1,), np.int8),
            "tuple": Tuple([MultiBinary(int(n)) for n in getattr(self.action_space, "nvec", [self.num])]),
            "lies": Box(0, 2, (self.num,), np.int8),
        }
        self.mask = mask
        parts = {"observation": Box(-9, 9, (2,), np.float32), "action_mask": masks[mask]}
        self.observation_space = Dict({"other": Discrete(3), **parts} if part == "two" else parts)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.k = 0
        return self.seen(), {}

    def seen(self):
        space, rng = self.action_space, self.np_random
        sizes = space.nvec.ravel() if isinstance(space, MultiDiscrete) else [2] * (self.num // 2)
        sizes = [self.num] if isinstance(space, Discrete) else sizes
        self.allowed = []
        for n in sizes:
            one = rng.integers(2, size=n).astype(np.int8)
            one[rng.integers(n)] = 1
            self.allowed.append(one)
        if self.k == self.stuck:
            self.allowed[-1][:] = 0
        flat = np.concatenate(self.allowed)
        if self.mask == "lies":
            flat = flat + 1
        mask = tuple(self.allowed) if self.mask == "tuple" else flat
        parts = {"observation": np.array([self.k, 1], np.float32), "action_mask": mask}
        return {"other": 2, **parts} if self.part == "two" else parts

    def step(self, action):
        assert self.action_space.contains(action), action
        start = getattr(self.action_space, "start", np.zeros(self.action_space.shape))
        chosen = np.ravel(np.asarray(action) - start).astype(int)
        assert all(one[c] for one, c in zip(self.allowed, chosen, strict=True)), (action, self.allowed)
        self.k += 1
        end = self.k == 6
        if end:
            self.allowed = []
        seen = self.seen()
        if end and self.mask == "box":  # of an episode that is over nothing can be done
            seen["action_mask"] = np.zeros(self.num, np.int8)
        return seen, float(chosen.sum()), end, False, {}


for name, made in {"Levers-v0": Levers, "Doors-v0": Doors}.items():
    if name not in gymnasium.registry:  # pytest may import this module under two names
        gymnasium.register(name, made)


class Crew(Game):
    """a has two levers, b a switch board, c one number; choices/Crew."""

    names: ClassVar[tuple[str, ...]] = ("a", "b", "c")

    def does(self, agent):
        return {"a": MultiDiscrete([2, 3], start=[0, 4]), "b": MultiBinary((1, 3)), "c": Discrete(2)}[agent]

    def step(self, actions):
        for agent, action in actions.items():
            assert self.action_space(agent).contains(action), actions
        return super().step(actions)


class Guarded(Game):
    """PettingZoo's convention: observation and action_mask; after k steps agent a may do anything but k, b only k."""

    stuck = -1

    def sees(self, agent):
        return Dict(observation=super().sees(agent), action_mask=Box(0, 1, (4,), np.int8))

    def does(self, agent):
        return Discrete(4)

    def masks(self, agent):
        mask = np.eye(4, dtype=np.int8)[self.k % 4]
        if self.k == self.stuck and agent == "b":
            return 0 * mask
        return mask if agent == "b" else 1 - mask

    def observations(self, agents):
        plain = super().observations(agents)
        return {agent: {"observation": plain[agent], "action_mask": self.masks(agent)} for agent in agents}

    def step(self, actions):
        for agent, action in actions.items():
            assert self.masks(agent)[action], (self.k, actions)
        return super().step(actions)


class Stuck(Guarded):
    """b may do nothing after two steps."""

    stuck = 2
