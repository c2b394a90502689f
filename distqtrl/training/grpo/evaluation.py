"""Greedy answers to questions that nothing was trained on, spread over the ranks."""

from collections.abc import Sequence

import numpy as np

from distqtrl.allreduce.communicator import Communicator
from distqtrl.config.run import Config
from distqtrl.language.adapted import Adapted, answers, questions
from distqtrl.training.evaluation import Greedy, gathered


def greedy_answers(
    config: Config, comm: Communicator, policies: Sequence[Adapted], purpose: str, episode: int, num: int
) -> Greedy:
    """Rewards of num answers, the likeliest completions: of training's questions for a validation, else of tests'."""
    (adapted,) = policies
    rows = np.stack(answers(adapted, questions(adapted.task, purpose, episode, range(comm.rank, num, comm.size))))
    rewards, lengths = gathered(comm, rows, num)
    return Greedy(rewards, rewards[np.newaxis], int(lengths.sum()), cut=0)
