"""Greedy answers to questions that nothing was trained on, spread over the ranks."""

from collections.abc import Sequence

import numpy as np

from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.config.run import Config
from distqtrl.language.adapted import Adapted, answers, questions
from distqtrl.training.evaluation import Greedy


def greedy_answers(
    config: Config, comm: Communicator, policies: Sequence[Adapted], purpose: str, episode: int, num: int
) -> Greedy:
    """Rewards of num answers, the likeliest completions: of training's questions for a validation, else of tests'."""
    (adapted,) = policies
    rows = np.stack(answers(adapted, questions(adapted.task, purpose, episode, range(comm.rank, num, comm.size))))
    gathered = np.empty((2, num))
    for rank, part in enumerate(allgather_bytes(comm, rows.tobytes())):
        gathered[:, rank :: comm.size] = np.frombuffer(part).reshape(2, -1)
    return Greedy(gathered[0], gathered[:1], int(gathered[1].sum()), cut=0)
