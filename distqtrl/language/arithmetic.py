"""Additions of two numbers of two digits, "47+38=", whose sum is written from its last digit: "58".

Which of the 10,000 pairs are asked in tests follows from a hash of the pair, whatever its order: a linear rule would
leave structure, and 38+47 would give 47+38 away.
"""

import hashlib
from functools import cache

from distqtrl.language.questions import Question

CHARACTERS = "0123456789+="
SIZE = 100  # numbers below
TESTED = 5  # one of so many pairs
LONGEST = 4  # tokens of an answer, with its end


@cache
def pairs(split: str) -> tuple[tuple[int, int], ...]:
    """The pairs of a split, in an order that follows from their hashes.

    >>> len(pairs("train")) + len(pairs("test")), len(set(pairs("train")) & set(pairs("test")))
    (10000, 0)
    """
    everything = [(a, b) for a in range(SIZE) for b in range(SIZE)]
    chosen = [pair for pair in everything if (_hash(min(pair), max(pair)) % TESTED == 0) == (split == "test")]
    return tuple(sorted(chosen, key=lambda pair: _hash(*pair)))


class Arithmetic:
    """The task; number counts on from the beginning where a split ends."""

    def size(self, split: str) -> int:
        """Questions of a split."""
        return len(pairs(split))

    def question(self, split: str, number: int) -> Question:
        """The question of this number.

        >>> Arithmetic().question("train", 0)
        Question(prompt='94+10=', answer='401')
        """
        a, b = pairs(split)[number % self.size(split)]
        return asked(a, b)

    def reward(self, completion: str, question: Question) -> float:
        """1 for the sum and nothing else, 0 otherwise."""
        return float(completion == question.answer)


def asked(a: int, b: int) -> Question:
    """A pair as a question.

    >>> asked(7, 98)
    Question(prompt='07+98=', answer='501')
    """
    return Question(f"{a:02}+{b:02}=", str(a + b)[::-1])


def _hash(a: int, b: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{a}+{b}".encode()).digest()[:8], "big")
