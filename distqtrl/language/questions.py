"""A question and its answer, as every task has them."""

from dataclasses import dataclass
from typing import Protocol

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Question:
    """A prompt as text, and what a reward is judged by."""

    prompt: str
    answer: str


class Task(Protocol):
    """Questions, and what completions are worth. Equal numbers are equal questions, on every rank."""

    def size(self, split: str) -> int | None:
        """Questions of a split, train or test; None where there is no end of them."""

    def question(self, split: str, number: int) -> Question:
        """The question of any number from 0 on; a split that has ended begins again."""

    def reward(self, completion: str, question: Question) -> float:
        """What a completion of the question's prompt is worth."""
