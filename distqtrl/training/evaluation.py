"""Greedy episodes of the policies, spread over the ranks."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.config.run import Config
from distqtrl.environment.rollout import evaluation
from distqtrl.policy.policy_file import Policy
from distqtrl.training.stopping import EXIT_CODES, Stopped, heed


@dataclass
class Greedy:
    """Returns of greedy episodes (means over agents), the agents' (G, num), all steps, and how many were cut."""

    returns: np.ndarray
    returns_GE: np.ndarray
    steps: int
    cut: int


def greedy_episodes(
    config: Config,
    comm: Communicator,
    policies: Sequence[Policy],
    purpose: str,
    episode: int,
    num: int,
    pending: Sequence[signal.Signals] = (),
) -> Greedy:
    """num greedy episodes in environments of their own, spread over the ranks; cut where the policies' origin says.

    Raises Stopped on all ranks when one of them has a pending signal.
    """
    indices, most = range(comm.rank, num, comm.size), policies[0].origin.get("max_steps")
    acts, played_by = [_heeding(policy.act, pending) for policy in policies], [policy.agents for policy in policies]

    def rows() -> np.ndarray:
        played = evaluation(config.environment, indices, 0, purpose, acts, played_by, episode, most)
        return np.concatenate([played.returns_EG.T, played.length_E[np.newaxis], played.cut_E[np.newaxis]])

    whole = gathered(comm, rows, num)
    return Greedy(whole[:-2].mean(0), whole[:-2], int(whole[-2].sum()), int(whole[-1].sum()))


def _heeding(act: Callable[[np.ndarray], np.ndarray], pending: Sequence[signal.Signals]) -> Callable[..., np.ndarray]:
    def heeding(obs_BO: np.ndarray) -> np.ndarray:
        heed(pending)
        return act(obs_BO)

    return heeding


def gathered(comm: Communicator, rows: Callable[[], np.ndarray], num: int) -> np.ndarray:
    """Rows whose num columns, dealt out over the ranks, are in order again; rows(): with the columns of this rank.

    Raises Stopped on all ranks when rows() does on one.
    """
    try:
        own = np.ascontiguousarray(rows(), dtype=np.float64).tobytes()
    except Stopped as stopped:
        own = bytes([stopped.cause])  # no whole number of columns
    parts = allgather_bytes(comm, own)
    causes = [part[0] for part in parts if len(part) == 1]
    if causes:
        raise Stopped(next(cause for cause in EXIT_CODES if cause in causes))
    columns = [np.frombuffer(part) for part in parts]
    whole = np.empty((sum(map(len, columns)) // num, num))
    for rank, part in enumerate(columns):
        whole[:, rank :: comm.size] = part.reshape(len(whole), -1)
    return whole
