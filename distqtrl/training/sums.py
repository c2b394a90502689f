"""What ranks add up once per update, as typed records, in one reduction."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

from distqtrl.training.gradient import Array, finite_sum
from distqtrl.training.run import Run
from distqtrl.training.stopping import EXIT_CODES

Record = TypeVar("Record")


@dataclass
class RolloutSums:
    """What the loop wants to know of a rollout, whatever the algorithm; G agents."""

    steps: Array  # of environments
    acted_G: Array  # steps in which each agent acted
    episodes: Array  # that ended, and of those:
    returns: Array
    lengths: Array
    returns_G: Array
    signals: Array  # how many ranks were asked to stop, in the order of EXIT_CODES
    busy_s: Array  # CPU seconds spent on anything but communication


def rollout_sums(run: Run, acted_G: np.ndarray, steps: int, pending: Sequence[signal.Signals]) -> RolloutSums:
    """This rank's part, of the episodes that ended since this was asked last; notes the longest one."""
    environments, counters = run.environments, run.counters
    finished, environments.finished = environments.finished, []
    returns, environments.agent_returns = environments.agent_returns, []
    running = [len(actions) for actions in environments.actions]
    counters.longest_episode = max([counters.longest_episode, *(n for _, n in finished), *running])
    return RolloutSums(
        steps=np.array(float(steps)),
        acted_G=acted_G.astype(np.float64),
        episodes=np.array(float(len(finished))),
        returns=np.array(float(sum(r for r, _ in finished))),
        lengths=np.array(float(sum(n for _, n in finished))),
        returns_G=np.sum(returns, axis=0) if returns else np.zeros(environments.num_agents),
        signals=np.array([float(pending.count(s)) for s in EXIT_CODES]),
        busy_s=np.array(run.policies.profile.busy_s()),
    )


def summed(run: Run, local: Record, what: str) -> Record:
    """The record with every array of it, also in records and lists inside, summed over the ranks in one reduction.

    Raises NotFinite on every rank, naming those whose part is not finite.
    """
    with run.policies.profile("allreduce"):
        pieces = [piece.ravel() for piece in _arrays(local)]
        total = finite_sum(run.comm, run.config.allreduce.reduction, np.concatenate(pieces), what)
    found: Record = _refilled(local, iter(np.split(total, np.cumsum([len(piece) for piece in pieces])[:-1])))
    return found


def _arrays(part: Any) -> Iterator[Array]:
    if is_dataclass(part):
        part = [getattr(part, f.name) for f in fields(part)]
    if isinstance(part, list):
        for each in part:
            yield from _arrays(each)
    else:
        yield part


def _refilled(part: Any, pieces: Iterator[Array]) -> Any:
    """A record like this one, of the next pieces."""
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{f.name: _refilled(getattr(part, f.name), pieces) for f in fields(part)})
    if isinstance(part, list):
        return [_refilled(each, pieces) for each in part]
    return next(pieces).reshape(part.shape)
