"""CoinGame: players on a grid collect one coin that has an owner. A PettingZoo parallel environment.

Every player and the coin have a colour. A player that ends its move on the coin gets +1; if the coin is another's,
the coin's owner gets -2. Cooperation is to take one's own coins and to leave the others'.

Rewards are those of Lerer & Peysakhovich, arXiv:1707.01068. The rules below are of ``CoinGame-2`` in MATE (Phan et al.,
AAMAS 2022), which eQMARL took over (arXiv:2405.17486; github.com/news-vt/eqmarl, environments/coin_game.py); the
defaults and 'partial' are those of eQMARL's experiments. Ours is that the time limit truncates: both call it done, so
that eQMARL's critic bootstraps from zero there.

* Moves are north, south, west, east; nobody can stand still, except by a move into a wall.
* All move at once, players may share a cell, and every player that ends on the coin collects it. (Both sources move
  them in random order, yet the coin only after the last, so that the order has no effect.)
* A collected coin moves to another cell, uniformly, occupied or not; its colour is uniform over the players.
* An episode starts with the players and the coin on different cells, uniformly.

eQMARL's score is the undiscounted sum of rewards over all players and steps of an episode; on its grid of 3 x 3 with
50 steps no policy exceeds 27.37 on average (exact, by backward induction). Its own coin rate is the sum of
``own_coins`` over the sum of ``coins`` in the infos of an episode's last step.

Shapes, N players and cells c = size x + y: observations 4 size^2 ('full') or 3 size^2 ('partial'), state 2 N size^2.
"""

import colorsys
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import seeding
from pettingzoo import ParallelEnv

Planes = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
Infos = dict[str, dict[str, int]]
Flags = dict[str, bool]
Colour = tuple[float, float, float]

NORTH, SOUTH, WEST, EAST = range(4)
DIRECTIONS = {NORTH: (0, 1), SOUTH: (0, -1), WEST: (-1, 0), EAST: (1, 0)}
COLLECTED, LOST = 1.0, -2.0
FRAME = 256  # pixels


class CoinGame(ParallelEnv[str, Planes, int]):
    """CoinGame-2 as eQMARL plays it; other sizes and numbers of players by the same rules.

    ``cells`` (one per player), ``coin`` (its cell) and ``owner`` (the coin's player) are the whole state, integers.
    An observation is flat, planes of size x size in this order: oneself, the other players (left out if 'partial'),
    the coin if it is one's own, the coin if it is another's.

    >>> env = CoinGame()
    >>> observations, infos = env.reset(seed=0)
    >>> observations["player_0"].shape, env.state().shape
    ((36,), (36,))
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (PettingZoo's declaration)
        "name": "coin_game_v0",
        "render_modes": ["rgb_array"],
        "is_parallelizable": True,
        "render_fps": 4,
    }

    def __init__(
        self,
        size: int = 3,
        num_agents: int = 2,
        max_cycles: int = 50,
        observation: str = "full",
        render_mode: str | None = None,
    ) -> None:
        _check_number("size", size, 2)
        _check_number("num_agents", num_agents, 2, size * size - 1)
        _check_number("max_cycles", max_cycles, 1)
        if observation not in ("full", "partial"):
            raise ValueError(f"observation = {observation!r} is unknown: use 'full' or 'partial'")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode = {render_mode!r} is unknown: use 'rgb_array' or None")
        self.size, self.max_cycles, self.observation, self.render_mode = size, max_cycles, observation, render_mode
        self.num_cells = num_cells = size * size
        self.possible_agents = [f"player_{i}" for i in range(num_agents)]
        self.agents: list[str] = []
        num_planes = 4 if observation == "full" else 3
        most = float(num_agents - 1)  # the others may all be on one cell
        self.observation_spaces = {
            agent: Box(0.0, most, (num_planes * num_cells,), np.float32) for agent in self.possible_agents
        }
        self.action_spaces = {agent: Discrete(len(DIRECTIONS)) for agent in self.possible_agents}
        self.state_space = Box(0.0, 1.0, (2 * num_agents * num_cells,), np.float32)
        self._moves = [[_neighbour(cell, action, size) for action in DIRECTIONS] for cell in range(num_cells)]
        self._random = seeding.np_random()[0]

    def observation_space(self, agent: str) -> gymnasium.Space[Planes]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Planes], Infos]:
        """The first observations of an episode; without a seed the present generator goes on. No options."""
        if seed is not None:
            self._random = seeding.np_random(seed)[0]
        self.agents = list(self.possible_agents)
        num = len(self.agents)
        *self.cells, self.coin = self._random.permutation(self.num_cells)[: num + 1].tolist()
        self.owner = int(self._random.integers(num))
        self.num_steps, self.coins, self.own_coins = 0, [0] * num, [0] * num
        return self._observations(), self._infos()

    def step(self, actions: dict[str, int]) -> tuple[dict[str, Planes], dict[str, float], Flags, Flags, Infos]:
        """All players move at once; raises RuntimeError when there is no episode, ValueError for an unknown action."""
        if not self.agents:
            raise RuntimeError("step without an episode: call reset() first")
        agents, coin, owner = self.agents, self.coin, self.owner
        rewards = dict.fromkeys(agents, 0.0)
        collected = False
        for i, agent in enumerate(agents):
            action = actions[agent]
            if not 0 <= action < len(DIRECTIONS):
                raise ValueError(f"{agent}: action = {action} is unknown: use 0 to {len(DIRECTIONS) - 1}")
            self.cells[i] = cell = self._moves[self.cells[i]][action]
            if cell != coin:
                continue
            collected = True
            rewards[agent] += COLLECTED
            self.coins[i] += 1
            if i == owner:
                self.own_coins[i] += 1
            else:
                rewards[agents[owner]] += LOST
        if collected:
            self._move_coin()
        self.num_steps += 1
        truncated = self.num_steps >= self.max_cycles
        observations, infos = self._observations(), self._infos()
        if truncated:
            self.agents = []
        return observations, rewards, dict.fromkeys(agents, False), dict.fromkeys(agents, truncated), infos

    def state(self) -> Planes:
        """The grid as seen by nobody: a plane for each player, then a plane for each colour of coin (2 N size^2)."""
        state = np.zeros(2 * len(self.cells) * self.num_cells, dtype=np.float32)
        for i, cell in enumerate(self.cells):
            state[i * self.num_cells + cell] = 1.0
        state[(len(self.cells) + self.owner) * self.num_cells + self.coin] = 1.0
        return state

    def render(self) -> Image | None:
        """The grid as RGB, about 256 x 256, north up; discs are players, the small disc on white is the coin."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() without a render mode: make the environment with render_mode='rgb_array'")
            return None
        pixels = FRAME // self.size
        lines = pixels * np.arange(self.size)
        image = np.full((pixels * self.size, pixels * self.size, 3), 244.0)
        image[lines], image[:, lines] = 214.0, 214.0

        def draw_disc(cell: int, shift: float, radius: float, colour: Colour) -> None:
            x, y = cell // self.size + 0.5 + shift, self.size - cell % self.size - 0.5
            down, right = np.ogrid[: len(image), : len(image)]
            distance = np.hypot(right + 0.5 - pixels * x, down + 0.5 - pixels * y)
            cover = np.clip(pixels * radius - distance + 0.5, 0.0, 1.0)  # a soft edge
            image[:] += cover[..., np.newaxis] * (np.array(colour) - image)

        for i, cell in enumerate(self.cells):
            num, before = self.cells.count(cell), self.cells[:i].count(cell)  # those who share a cell stand in a row
            draw_disc(cell, 0.36 * (before - (num - 1) / 2) / num, 0.36 if num == 1 else 0.28, _colour(i))
        draw_disc(self.coin, 0.0, 0.19, (255.0, 255.0, 255.0))
        draw_disc(self.coin, 0.0, 0.15, _colour(self.owner))
        return image.round().astype(np.uint8)

    def _move_coin(self) -> None:
        num = len(self.cells)
        cell, self.owner = divmod(int(self._random.integers((self.num_cells - 1) * num)), num)
        self.coin = cell + (cell >= self.coin)  # any cell but the one it was on

    def _observations(self) -> dict[str, Planes]:
        full, num_cells = self.observation == "full", self.num_cells
        observations = {}
        for i, agent in enumerate(self.possible_agents):
            planes = np.zeros((4 if full else 3) * num_cells, dtype=np.float32)
            planes[self.cells[i]] = 1.0
            if full:
                for j, cell in enumerate(self.cells):
                    if j != i:
                        planes[num_cells + cell] += 1.0
            planes[(1 + full + (i != self.owner)) * num_cells + self.coin] = 1.0
            observations[agent] = planes
        return observations

    def _infos(self) -> Infos:
        """Coins that each player has collected in this episode, and how many of them were its own."""
        counts = zip(self.possible_agents, self.coins, self.own_coins, strict=True)
        return {agent: {"coins": coins, "own_coins": own_coins} for agent, coins, own_coins in counts}


def _check_number(name: str, value: int, low: int, high: int | None = None) -> None:
    if not isinstance(value, int) or value < low or (high is not None and value > high):
        limits = f"of {low} or more" if high is None else f"from {low} to {high} (and a cell is left for the coin)"
        raise ValueError(f"{name} = {value!r} is not possible: use a whole number {limits}")


def _neighbour(cell: int, action: int, size: int) -> int:
    """The cell that an action leads to; walls stop it."""
    (x, y), (right, up) = divmod(cell, size), DIRECTIONS[action]
    return size * min(max(x + right, 0), size - 1) + min(max(y + up, 0), size - 1)


def _colour(player: int) -> Colour:
    """Red, blue, and on by the golden angle, so that any number of players differ."""
    red, green, blue = colorsys.hsv_to_rgb(player * 0.618034 % 1.0, 0.72, 0.86)
    return 255.0 * red, 255.0 * green, 255.0 * blue


parallel_env = CoinGame  # the name by which PettingZoo's modules offer theirs
