"""The prompts of this rank, in the place of its environments: a prompt is an environment, a completion a step of it.

What a prompt asks in an update follows from its global number and the update, so there is nothing to save.
"""

from collections.abc import Sequence

import numpy as np

from distqtrl import seeding
from distqtrl.language import sampler
from distqtrl.language.adapted import asked
from distqtrl.language.questions import Question
from distqtrl.training.grpo.spec import Decoder


class Prompts:
    """``indices`` are the prompts' global numbers (see environment.vector.Environments, whose loop this runs in)."""

    agents, num_agents = ("model",), 1

    def __init__(self, spec: Decoder, indices: Sequence[int], seed: int) -> None:
        self.task, self.indices, self.num = spec.task, list(indices), len(indices)
        self._spec, self._seed = spec, seed
        self.max_steps = spec.max_tokens
        self.finished: list[tuple[float, int]] = []  # reward and length of completions
        self.agent_returns: list[list[float]] = []
        longest = max((len(spec.model.checkpoint.tokens(q.prompt)) for q in self.questions(0)), default=0)
        sampler.check(spec.model, longest, spec.max_tokens)
        self.actions: list[list[int]] = [[] for _ in indices]  # no completion lasts beyond an update

    def questions(self, update: int) -> list[Question]:
        """What the prompts ask in an update."""
        return [asked(self.task, "train", seeding.stream(self._seed, "episode", i, update)) for i in self.indices]

    def ended(self, rewards_N: np.ndarray, length_N: np.ndarray) -> None:
        """Completions have ended."""
        self.finished += zip(rewards_N.tolist(), length_N.tolist(), strict=True)
        self.agent_returns += [[reward] for reward in rewards_N.tolist()]

    def facts(self) -> dict[str, str]:
        """What must be equal on all ranks."""
        first = self.task.question("train", 0)
        return {"language models": self._spec.sha256, "questions": f"{self.task.size('train')}, {first.prompt}"}

    def numbers(self, role: int) -> list[int]:
        """The global numbers."""
        return self.indices

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps of it."""
        nothing = np.zeros(self.num, dtype=np.int64)
        return {
            "index_B": np.array(self.indices),
            "episode_B": nothing,
            "length_B": nothing,
            "actions": np.zeros(0),
            "obs_BO": np.zeros((self.num, 0), dtype=np.float32),
        }

    def restore(self, state: dict[str, np.ndarray]) -> list[int]:
        """Nothing has to be restored, and nothing starts anew."""
        return []

    def close(self) -> None:
        """There is nothing to give back."""
