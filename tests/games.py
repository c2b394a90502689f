"""Small environments with several agents, whose every number is known; environment.id = games/Relay and so on."""

from typing import ClassVar

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from pettingzoo import ParallelEnv


class Game(ParallelEnv):
    """Base: agents a, b, c, ...; observation (k, number of the agent) after k steps; rewards are the actions."""

    metadata: ClassVar[dict] = {"name": "game_v0"}
    names: ClassVar[tuple[str, ...]] = ("a", "b")
    length = 3

    def __init__(self, render_mode=None):
        self.possible_agents, self.render_mode = list(self.names), render_mode
        self.seen = {agent: self.sees(agent) for agent in self.names}
        self.done = {agent: self.does(agent) for agent in self.names}

    def observation_space(self, agent):
        return self.seen[agent]

    def action_space(self, agent):
        return self.done[agent]

    def sees(self, agent):
        return Box(-100, 100, (2,), np.float32)

    def does(self, agent):
        return Discrete(3)

    def observations(self, agents):
        return {agent: np.array([self.k, ord(agent) - ord("a")], np.float32) for agent in agents}

    def begin(self):
        return list(self.possible_agents)

    def reset(self, seed=None, options=None):
        self.k, self.agents = 0, self.begin()
        return self.observations(self.agents), {agent: {} for agent in self.agents}

    def ends(self):
        """The agents that terminate at step k, and those that are truncated."""
        return (self.agents, []) if self.k == self.length else ([], [])

    def comes(self):
        """Agents that join after step k."""
        return []

    def rewards(self, actions):
        return {agent: float(np.sum(action)) for agent, action in actions.items()}

    def step(self, actions):
        assert actions.keys() == set(self.agents), (actions, self.agents)
        self.k += 1
        acted, (terminated, truncated) = list(self.agents), self.ends()
        rewards = self.rewards(actions)
        self.agents = [agent for agent in acted if agent not in (*terminated, *truncated)] + self.comes()
        seen = dict.fromkeys([*acted, *self.agents])
        flags = ({agent: agent in group for agent in seen} for group in (terminated, truncated))
        return self.observations(seen), rewards, *flags, {agent: {} for agent in seen}


class Relay(Game):
    """Three agents: b terminates at step 2, c joins after step 1 and is truncated at step 4, a terminates at step 4."""

    names = ("a", "b", "c")

    def begin(self):
        return ["a", "b"]

    def ends(self):
        return {2: (["b"], []), 4: (["a"], ["c"])}.get(self.k, ([], []))

    def comes(self):
        return ["c"] if self.k == 1 else []


class Silent(Game):
    """b leaves after step 1 without a word."""

    def step(self, actions):
        found = super().step(actions)
        self.agents = [agent for agent in self.agents if agent != "b"]
        return found


class Mixed(Game):
    """a chooses one of 2 numbers that begin at 1, b two numbers between 0 and 2, and sees one of 4 states."""

    def does(self, agent):
        return Discrete(2, start=1) if agent == "a" else Box(0, 2, (2,), np.float32)

    def sees(self, agent):
        return super().sees(agent) if agent == "a" else Discrete(4)

    def observations(self, agents):
        return {agent: np.array([self.k, 0], np.float32) if agent == "a" else self.k for agent in agents}

    def step(self, actions):
        assert all(self.action_space(agent).contains(action) for agent, action in actions.items()), actions
        return super().step(actions)


class Masked(Game):
    """Observations are a Dict."""

    def sees(self, agent):
        return Dict(view=Box(-9, 9, (3,)), mask=Box(0, 1, (2,)))

    def observations(self, agents):
        return {agent: {"view": np.full(3, self.k, np.float32), "mask": np.zeros(2)} for agent in agents}


class SetOfAgents(Game):
    def __init__(self):
        super().__init__()
        self.possible_agents = set(self.names)


class Twins(Game):
    names = (1, "1")


class Nobody(Game):
    names = ()


class Nameless(Game):
    names = ("",)


class Buffer(Game):
    """Shows the number of the step in one array that it writes over."""

    memory = np.zeros(2, np.float32)

    def observations(self, agents):
        self.memory[:] = self.k
        return dict.fromkeys(agents, self.memory)


class Faulty(Game):
    """In step 2 ``what`` (a place in the tuple of five, or state) of agent b, or as a whole, is ``given``."""

    def __init__(self, what, given, whole=False):
        super().__init__()
        self.what, self.given, self.whole = what, given, whole

    def step(self, actions):
        found = list(super().step(actions))
        if self.k == 2 and self.what != "state":
            found[self.what] = self.given if self.whole else {**found[self.what], "b": self.given}
        return tuple(found)

    def state(self):
        return self.given if self.what == "state" and self.k == 2 else np.zeros(3)


class Screen(Game):
    """Observes a picture whose left half is white after an even number of steps, and its right half otherwise."""

    def sees(self, agent):
        return Box(0, 255, (6, 8, 3), np.uint8)

    def observations(self, agents):
        picture = np.zeros((6, 8, 3), np.uint8)
        picture[:, 4 * (self.k % 2) :][:, :4] = 255
        return dict.fromkeys(agents, picture)


class Growing(Game):
    """Its observations are longer in the second episode."""

    episodes = 0

    def observations(self, agents):
        return {agent: np.zeros(2 + (self.episodes > 1), np.float32) for agent in agents}

    def begin(self):
        self.episodes += 1
        return super().begin()


class Idle(Game):
    """b never acts."""

    def begin(self):
        return ["a"]


class Empty(Game):
    def begin(self):
        return []


class Odder(Game):
    """Agents whose names are no good as names of files."""

    names = ("red/0", "..", "x" * 300, "RED_0")

    def observations(self, agents):
        return {agent: np.array([self.k, len(agent)], np.float32) for agent in agents}


class Odd(Game):
    def begin(self):
        return ["a", "z"]


class Lettered(Game):
    """An agent whose name no file holds."""

    names = ("a\udcff",)


class Listed(Game):
    """An agent that cannot be a key."""

    def __init__(self):
        super().__init__()
        self.possible_agents = [["a"]]


class Once(Game):
    """Agents that can be read once."""

    def reset(self, seed=None, options=None):
        found = super().reset(seed, options)
        self.agents = iter(self.agents)
        return found


class Tabled(Game):
    """Spaces in a table, as RLlib has them."""

    def __init__(self):
        super().__init__()
        self.observation_space = Dict({agent: self.sees(agent) for agent in self.names})


class Seedless(Game):
    def reset(self):
        return super().reset()


class Deaf(Game):
    def step(self):
        return super().step({})


class Alike(Game):
    def observation_space(self):
        return self.sees("a")


class Distant(Game):
    """Actions whose first no policy file holds."""

    def does(self, agent):
        return Discrete(3, start=2**60)


class Still(Game):
    """b has no action."""

    def does(self, agent):
        return Discrete(3) if agent == "a" else None


class Unbounded(Game):
    def does(self, agent):
        return Box(-np.inf, np.inf, (1,))


class Failing(Game):
    """Divides by zero at step 2 of its second episode."""

    episodes = 0

    def begin(self):
        self.episodes += 1
        return super().begin()

    def step(self, actions):
        if self.episodes == 2 and self.k == 1:
            return 1 / 0
        return super().step(actions)


class Chsh(Game):
    """The CHSH game: each sees a bit x or y and answers a bit; both get 1 when a xor b equals x and y."""

    length = 1

    def sees(self, agent):
        return Box(-1, 1, (1,), np.float32)

    def does(self, agent):
        return Discrete(2)

    def reset(self, seed=None, options=None):
        self.bits = np.random.default_rng(seed).integers(2, size=2)
        return super().reset(seed)

    def observations(self, agents):
        return {agent: np.array([2 * self.bits[ord(agent) - ord("a")] - 1], np.float32) for agent in agents}

    def rewards(self, actions):
        return dict.fromkeys(actions, float((actions["a"] ^ actions["b"]) == self.bits.prod()))


class Gift(Game):
    """One step: whoever gives (action 1) pays 1, and the other gets 3."""

    length = 1

    def does(self, agent):
        return Discrete(2)

    def rewards(self, actions):
        return {agent: 3.0 * actions[other] - actions[agent] for agent, other in (("a", "b"), ("b", "a"))}


def turns(**kwargs):
    """An AEC environment."""
    import pettingzoo

    return pettingzoo.make("aec", "classic/rps_v2", **kwargs)


def nothing(**kwargs):
    return object()
