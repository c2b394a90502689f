"""Greedy episodes of the policies, spread over the ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.config.run import Config
from distqtrl.environment.rollout import evaluation
from distqtrl.policy.policy_file import Policy


@dataclass
class Greedy:
    """Returns of greedy episodes (means over agents), the agents' (G, num), all steps, and how many were cut."""

    returns: np.ndarray
    returns_GE: np.ndarray
    steps: int
    cut: int


def greedy_episodes(
    config: Config, comm: Communicator, policies: Sequence[Policy], purpose: str, episode: int, num: int
) -> Greedy:
    """num greedy episodes in environments of their own, spread over the ranks; cut where the policies' origin says."""
    acts, played_by = [policy.act for policy in policies], [policy.agents for policy in policies]
    indices, most = range(comm.rank, num, comm.size), policies[0].origin.get("max_steps")
    played = evaluation(config.environment, indices, 0, purpose, acts, played_by, episode, most)
    rows = np.concatenate([played.returns_EG.T, played.length_E[np.newaxis], played.cut_E[np.newaxis]])
    whole = gathered(comm, rows, num)
    return Greedy(whole[:-2].mean(0), whole[:-2], int(whole[-2].sum()), int(whole[-1].sum()))


def gathered(comm: Communicator, rows: np.ndarray, num: int) -> np.ndarray:
    """Rows whose num columns, dealt out over the ranks, are in order again; rows: with the columns of this rank."""
    whole = np.empty((len(rows), num))
    for rank, part in enumerate(allgather_bytes(comm, rows.tobytes())):
        whole[:, rank :: comm.size] = np.frombuffer(part).reshape(len(rows), -1)
    return whole
