"""Copies of an environment on this rank, each known by its global index, stepped as one batch.

B counts what the policies see: one row per environment, or per environment and agent, environment by environment. A
row is padded to the widest observation (``widths`` says how much of it a role reads); a role with several agents also
reads which of them it is, one-hot behind the observation.

Every episode starts with ``reset(seed)``, and the seed belongs to (global environment index, episode number),
so samples do not depend on how environments are spread over ranks; no vector environment stands between, which
would reset by itself and step those that wait for others. Neither Gymnasium nor PettingZoo offers a way to save an
environment; a saved state is therefore the episode's number and its actions, and restoring replays them. An environment
whose replay does not give the saved observation bit for bit (it draws from a source that its seed does not reach)
restarts with its next episode, and the caller is told which ones did.
"""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from distqtrl import seeding
from distqtrl.config import stages as configuration
from distqtrl.defaults import Defaults
from distqtrl.environment.failures import failure
from distqtrl.environment.pictures import Picture
from distqtrl.environment.spaces import Floats, short
from distqtrl.environment.world import World, make
from distqtrl.errors import UserError

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Role = tuple[str, ...]  # the agents that one policy plays
Result = TypeVar("Result")


@dataclass
class Step:
    """One step of every environment. obs_BO is final for an agent whose episode ended, and so is states_ES."""

    obs_BO: Floats
    rewards_B: Array
    terminated_B: Flags
    truncated_B: Flags
    states_ES: Floats | None = None


def merged(states: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The state of all environments, merged from the states of several ranks."""
    rows = {name: [state[name] for state in states] for name in states[0]}
    rows["actions"] = [actions for actions in rows["actions"] if len(actions)] or rows["actions"][:1]  # [] has no dtype
    return {name: np.concatenate(parts) for name, parts in rows.items()}


class Environments:
    """The rank's environments; ``indices`` are their global numbers, ``purpose`` and ``episode`` (the first) seed them.

    roles: the agents of every policy, () = all; by default one role has them all. ``rows`` says for every role
    which of the B rows are its own. A row is an observation, then which of several agents of a role it is, then the
    masks of its actions. ``obs_BO`` is what the policies see next, ``acts_B`` who acts next,
    ``states_ES`` the states (with ``central``; where an environment has none, all its agents' observations).
    ``finished`` collects (return, length) of episodes that ended, the return being the mean over agents, whose own
    are in ``agent_returns``. ``film`` is given a picture of every environment before each of its steps and at the
    end of its episode.
    """

    def __init__(
        self,
        config: configuration.Environment,
        indices: Sequence[int],
        seed: int,
        purpose: str,
        episode: int = 0,
        roles: Sequence[Role] = (),
        central: bool = False,
        film: Callable[[Picture], None] | None = None,
    ) -> None:
        self.indices, self.seed, self.purpose, self._name = list(indices), seed, purpose, config.id
        self.num, self._process, self._defaults = len(self.indices), os.getpid(), Defaults()
        self._central, self._film = central, film
        self.envs: list[World] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            self._make(config, roles)
            self._begin(episode)
            undo.pop_all()

    def _make(self, config: configuration.Environment, roles: Sequence[Role]) -> None:
        for _ in self.indices:
            self.envs.append(make(config, render=self._film is not None))
        with ExitStack() as until_known:
            first = self.envs[0] if self.envs else until_known.enter_context(closing(make(config)))
            self._take(first, roles)
            self.max_steps = first.max_steps
        for index, env in zip(self.indices, self.envs, strict=True):
            if (env.agents, env.spaces) != (first.agents, first.spaces):
                raise UserError(
                    f"{config.id}: environment {index} has other agents or spaces than environment {self.indices[0]}: "
                    "make all copies alike"
                )

    def _begin(self, episode: int) -> None:
        """Begin this episode of every environment."""
        self.episode_B = np.full(self.num, episode, dtype=np.int64)
        self.return_B = np.zeros(self.num * self.num_agents)
        self.actions: list[list[np.ndarray]] = [[] for _ in self.indices]
        self.finished: list[tuple[float, int]] = []
        self.agent_returns: list[Array] = []
        self.acts_B = np.ones(self.num * self.num_agents, dtype=np.bool_)
        self.states_ES: Floats | None = None
        for b in range(self.num):
            self._reset(b)

    def _take(self, world: World, roles: Sequence[Role]) -> None:
        """Lay out the rows of the batch: which belong to which role, and how wide they are."""
        self.agents, self._listed = world.agents, world.agents != ("",)
        self.num_agents = len(self.agents)
        self.roles = [role or self.agents for role in roles] or [self.agents]
        numbers = {agent: g for g, agent in enumerate(self.agents)}
        played = [agent for role in self.roles for agent in role]
        if sorted(played) != sorted(self.agents):
            lost = ", ".join(sorted({agent for agent in {*self.agents, *played} if played.count(agent) != 1}))
            raise UserError(f"the policies do not play each agent once, see {lost}: give a whole run directory")
        self._own = [
            slice(b * self.num_agents, (b + 1) * self.num_agents) if self._listed else b for b in range(self.num)
        ]
        self.rows: list[Any] = []
        self.widths: list[int] = []
        masks: dict[int, slice] = {}
        for role in self.roles:
            own = [numbers[agent] for agent in role]
            every = [b * self.num_agents + g for b in range(self.num) for g in own]
            self.rows.append(np.array(every, dtype=np.int64) if len(own) < self.num_agents else slice(None))
            found = world.spaces[own[0]]
            seen = found.num_observations + (len(own) if len(own) > 1 else 0)
            self.widths.append(seen + found.num_masks)
            for g in own:
                masks[g] = slice(seen, self.widths[-1])
        self._masks_G = [masks[g] for g in range(self.num_agents)]  # where an agent's masks are in its rows
        self._masked = any(space.masked for space in world.spaces)
        self.spaces = dict(zip(self.agents, world.spaces, strict=True))
        self._num_O = [each.num_observations for each in world.spaces]
        self.obs_BO = np.zeros((self.num * self.num_agents, max(self.widths)), dtype=np.float32)
        for role in self.roles:
            if len(role) > 1:
                for place, agent in enumerate(role):
                    column = self._num_O[numbers[agent]] + place
                    self.obs_BO[numbers[agent] :: self.num_agents, column] = 1

    def facts(self) -> dict[str, str]:
        """What must be equal on all ranks."""
        return {
            "agents (in order)": ", ".join(self.agents) or "one",
            "observations and actions": "; ".join(dict.fromkeys(map(str, self.spaces.values()))),
            "time limits": str(self.max_steps),
            "states": "none" if self.states_ES is None else f"{self.states_ES.shape[1]} numbers",
        }

    def numbers(self, role: int) -> list[int]:
        """The global numbers of a role's rows, one per environment and agent."""
        every = np.arange(self.num * self.num_agents)[self.rows[role]]
        return [self.indices[b] * self.num_agents + g for b, g in (divmod(row, self.num_agents) for row in every)]

    def merged(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The B rows merged from those of every role: numbers, or rows padded to the widest."""
        if len(parts) == 1:
            return parts[0]
        widths = [part.shape[1] for part in parts if part.ndim > 1]
        out = np.zeros((len(self.obs_BO), *([max(widths)] if widths else [])), dtype=np.result_type(*parts))
        for rows, part in zip(self.rows, parts, strict=True):
            if widths:
                out[rows, : part.shape[1] if part.ndim > 1 else 1] = part.reshape(len(part), -1)
            else:
                out[rows] = part
        return out

    def acting(self, acts: Sequence[Callable[[np.ndarray], np.ndarray]]) -> Callable[[np.ndarray], np.ndarray]:
        """One function obs_BO -> actions_B for all rows, made of every role's."""
        if len(acts) == 1 and self.obs_BO.shape[1] == self.widths[0]:
            return acts[0]
        own = list(zip(acts, self.rows, self.widths, strict=True))
        return lambda obs_BO: self.merged([act(obs_BO[rows, :width]) for act, rows, width in own])

    def step(self, actions_B: np.ndarray, running_E: Flags | None = None) -> Step:
        """One step of all, or of those that run; the others keep their observation and get no reward.

        An episode that ended gives way to the next one, and ``obs_BO`` is then that one's first.
        """
        obs_BO, rewards_B = self.obs_BO.copy(), np.zeros(len(self.obs_BO))
        terminated_B, truncated_B = np.zeros((2, len(obs_BO)), dtype=np.bool_)
        acts_B = self.acts_B.copy()
        ended = []
        for b in range(self.num) if running_E is None else np.flatnonzero(running_E).tolist():
            own = self._own[b]
            actions = actions_B[own]
            if self._film is not None:
                self._show(b)
            try:
                seen, reward, terminated, truncated, acts = self.envs[b].step(actions)
            except BaseException as error:
                self._fail(b, error)
            self._put(obs_BO, b, seen)
            rewards_B[own], terminated_B[own], truncated_B[own], acts_B[own] = reward, terminated, truncated, acts
            self.return_B[own] += reward
            self.actions[b].append(actions)
            if not (acts.any() if self._listed else acts):
                ended.append(b)
        self._defaults.again(device=False)
        self._check_finite(obs_BO)
        stepped = range(self.num) if running_E is None else np.flatnonzero(running_E).tolist()
        self._check_masks(stepped, obs_BO, acts_B)
        states_ES = self._stated(obs_BO, stepped)
        self.acts_B, self.states_ES = acts_B, states_ES
        self.obs_BO = obs_BO
        if ended:
            self.obs_BO = obs_BO.copy()
            self.states_ES = None if states_ES is None else states_ES.copy()
        for b in ended:
            self._show(b)
            returns_G = self.return_B.reshape(self.num, -1)[b].copy()
            self.finished.append((float(returns_G.mean()), len(self.actions[b])))
            self.agent_returns.append(returns_G)
            self.episode_B[b] += 1
            self._reset(b)
        return Step(obs_BO, rewards_B, terminated_B, truncated_B, states_ES)

    def restart(self) -> None:
        """Leave every unfinished episode and start the next one."""
        for b, history in enumerate(self.actions):
            if history:
                self.episode_B[b] += 1
                self._reset(b)

    def state(self) -> dict[str, np.ndarray]:
        """Everything ``restore`` needs, as flat arrays."""
        every = [action for history in self.actions for action in history]
        return {
            "index_B": np.array(self.indices),
            "episode_B": self.episode_B.copy(),
            "length_B": np.array([len(history) for history in self.actions]),
            "actions": np.array(every) if every else np.zeros(0),
            "obs_BO": self.obs_BO.reshape(self.num, -1).copy(),
        }

    def restore(self, state: dict[str, np.ndarray]) -> list[int]:
        """Replay to a saved state, of these environments or more; returns the indices of those that had to restart."""
        histories = np.split(state["actions"], np.cumsum(state["length_B"])[:-1])
        row = {index: i for i, index in enumerate(state["index_B"].tolist())}
        restarted = []
        for b, (env, index) in enumerate(zip(self.envs, self.indices, strict=True)):
            saved, own, acts = row[index], self._own[b], np.True_
            self.episode_B[b] = state["episode_B"][saved]
            self._reset(b)
            for action in histories[saved]:
                if not np.any(acts):  # no saved episode has ended, so this is another one
                    break
                seen, reward, _, _, acts = self._called(b, partial(env.step, action))
                self._put(self.obs_BO, b, seen)
                self.actions[b].append(action)
                self.return_B[own] += reward
                self.acts_B[own] = acts
            if not np.any(acts) or (self.obs_BO[own].ravel() != state["obs_BO"][saved]).any():
                self.episode_B[b] += 1
                self._reset(b)
                restarted.append(index)
            else:
                self._set_state(b)
        return restarted

    def close(self) -> None:
        """Release every environment's resources."""
        for env in self.envs:
            env.close()

    def _reset(self, b: int) -> None:
        """Begin environment b's present episode."""
        self.actions[b] = []
        seen, self.acts_B[self._own[b]] = self._called(b, partial(self.envs[b].reset, self._seed(b)), 0)
        self.return_B[self._own[b]] = 0.0
        self._put(self.obs_BO, b, seen)
        self._check_finite(self.obs_BO)
        self._check_masks([b], self.obs_BO, self.acts_B)
        self._set_state(b)

    def _check_finite(self, obs_BO: Floats) -> None:
        """Raise UserError for the first observation that is not finite."""
        x = obs_BO.reshape(-1)
        if math.isfinite(x.dot(x)) or np.isfinite(x).all():  # the former is fast, and may overflow
            return
        row = int(np.argwhere(~np.isfinite(obs_BO))[0, 0])
        b, g = divmod(row, self.num_agents)
        who = f", agent {self.agents[g]}" if self._listed else ""
        seen = short(obs_BO[row, : self._num_O[g]].tolist())
        raise UserError(
            f"environment {self._where(b, len(self.actions[b]))}: {self._name}{who} observes {seen}, which is not "
            "finite: fix the environment"
        )

    def _check_masks(self, envs: Sequence[int], obs_BO: Floats, acts_B: Flags) -> None:
        """Raise UserError for the first agent of these that is to act and has no choice for a factor."""
        if not self._masked:
            return
        for g, (agent, masks) in enumerate(zip(self.agents, self._masks_G, strict=True)):
            space, rows = self.spaces[agent], np.asarray(envs, dtype=np.int64) * self.num_agents + g
            if not space.masked or not len(rows):
                continue
            firsts = np.cumsum([0, *space.factors[:-1]]) if space.factors else [0]
            some_EF = np.maximum.reduceat(obs_BO[rows, masks], firsts, axis=1)
            stuck_E = acts_B[rows] & (some_EF == 0).any(1)
            if stuck_E.any():
                who, b = f"agent {agent}'s " if self._listed else "", envs[int(stuck_E.argmax())]
                raise UserError(
                    f"environment {self._where(b, len(self.actions[b]))}: {who}action_mask allows no action: fix the "
                    "environment, or let the episode end there"
                )

    def _show(self, b: int) -> None:
        if self._film is not None:
            self._film(self._called(b, self.envs[b].render))

    def _seed(self, b: int) -> int:
        return seeding.integer(self.seed, self.purpose, self.indices[b], int(self.episode_B[b]))

    def _put(self, obs_BO: Floats, b: int, seen: Any) -> None:
        """Write what the agents of environment b observe into its rows."""
        if not self._listed:
            obs_BO[b] = seen
            return
        for g, (num, masks, obs_O) in enumerate(zip(self._num_O, self._masks_G, seen, strict=True)):
            obs_BO[b * self.num_agents + g, :num] = obs_O[:num]
            if self._masked:
                obs_BO[b * self.num_agents + g, masks] = obs_O[num:]

    def _set_state(self, b: int) -> None:
        if self._central:
            state_S = self._state(b, self.obs_BO)
            if self.states_ES is None:
                self.states_ES = np.zeros((self.num, len(state_S)), dtype=np.float32)
            self.states_ES[b] = state_S

    def _stated(self, obs_BO: Floats, running: Sequence[int]) -> Floats | None:
        """The states after a step of these environments."""
        if not self._central:
            return None
        assert self.states_ES is not None
        states_ES = self.states_ES.copy()
        for b in running:
            states_ES[b] = self._state(b, obs_BO)
        return states_ES

    def _state(self, b: int, obs_BO: Floats) -> Floats:
        state_S = self._called(b, self.envs[b].state, len(self.actions[b]))
        if state_S is None:
            return obs_BO[self._own[b]].reshape(-1)
        if self.states_ES is not None and len(state_S) != self.states_ES.shape[1]:
            raise UserError(
                f"{self._name}: state() of environment {self.indices[b]} has {len(state_S)} numbers, that of others "
                f"{self.states_ES.shape[1]}: make all copies alike"
            )
        return state_S

    def _called(self, b: int, action: Callable[[], Result], step: int | None = None) -> Result:
        """action(), in this step of environment b's episode, or in the next."""
        try:
            return action()
        except BaseException as error:
            self._fail(b, error, step)
        finally:
            self._defaults.again(device=step == 0)

    def _fail(self, b: int, error: BaseException, step: int | None = None) -> NoReturn:
        """Raise an error in environment b with what says which one it was, and when.

        A process that an environment forked, and that comes back by an exception, ends here: the run is not its own.
        """
        if os.getpid() != self._process:
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
        where = f"environment {self._where(b, step)}"
        if isinstance(error, UserError):
            error.args = (f"{where}: {error}",)
            raise error from None
        found = failure(error, f"{where}: {self._name} raised")
        if found is None:
            error.add_note(f"in {where}")
            raise error
        raise found from error

    def _where(self, b: int, step: int | None) -> str:
        step = len(self.actions[b]) + 1 if step is None else step
        when = f"step {step} of its episode" if step else "at its start"
        return f"{self.indices[b]} (reset with seed {self._seed(b)}), {when}"
