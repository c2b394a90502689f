"""Greedy answers to questions that nothing was trained on, spread over the ranks."""

import signal
from collections.abc import Sequence

import numpy as np

from distqtrl.allreduce.communicator import Communicator
from distqtrl.config.run import Config
from distqtrl.language.adapted import BATCH, Adapted, answers, questions
from distqtrl.training.evaluation import Greedy, gathered
from distqtrl.training.stopping import heed


def greedy_answers(
    config: Config,
    comm: Communicator,
    policies: Sequence[Adapted],
    purpose: str,
    episode: int,
    num: int,
    pending: Sequence[signal.Signals] = (),
) -> Greedy:
    """Rewards of num answers, the likeliest completions: of training's questions for a validation, else of tests'.

    Raises Stopped on all ranks when one of them has a pending signal.
    """
    (adapted,) = policies
    asked = questions(adapted.task, purpose, episode, range(comm.rank, num, comm.size))

    def rows() -> np.ndarray:
        parts = [np.empty((2, 0))]
        for first in range(0, len(asked), BATCH):
            heed(pending)
            parts.append(np.stack(answers(adapted, asked[first : first + BATCH])))
        return np.concatenate(parts, axis=1)

    rewards, lengths = gathered(comm, rows, num)
    return Greedy(rewards, rewards[np.newaxis], int(lengths.sum()), cut=0)
