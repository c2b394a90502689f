"""Where questions come from, and what completions of them are worth: a table of one, files of questions, own modules.

A .jsonl file has a question and an answer a line, as GSM8K does. A .py file is a module with ``reward(completion,
answer)`` and either ``questions(split)``, a list of (prompt, answer), or ``question(split, number)``; it runs in a
process of its own (``verifier``), so that a reward that hangs is a line and no hang.
"""

import hashlib
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path

from distqtrl.errors import UserError, nearest, shortened
from distqtrl.files import reading
from distqtrl.language.arithmetic import Arithmetic
from distqtrl.language.own import Own
from distqtrl.language.questions import SPLITS, Question, Task

TASKS: dict[str, Callable[[], Task]] = {"arithmetic": Arithmetic}  # to add a task, enter it here
TESTED = 10  # a file's questions are tested one in so many, where there is no file of tests beside it
NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d[\d,]*(?:\.\d+)?|(?<!\d)\.\d+)")  # in 10-3 the sign is none
FINAL = "####"  # GSM8K: what follows is the answer


def opened(name: str) -> Task:
    """The task of that name or file; raises UserError where there is none, or it is not as it should be."""
    if name in TASKS:
        return TASKS[name]()
    if name.endswith(".jsonl"):
        return Lines(Path(name))
    if name.endswith(".py"):
        return Own(Path(name))
    raise UserError(
        f"unknown language.task {shortened(name)}: {nearest(name, TASKS)}, or give a .jsonl file of questions and "
        "answers, or a .py file of your own"
    )


class Lines:
    """Questions of a .jsonl file, judged by the last number.

    train.jsonl has its tests in test.jsonl, if that lies beside it; of any other file, a hash of the question tells
    which one in ten is a test.
    """

    def __init__(self, path: Path) -> None:
        self.path, tests = path, path.with_name(path.name.replace("train", "test"))
        found = _lines(path)
        if tests != path and tests.is_file():
            self.questions = {"train": found, "test": _lines(tests)}
        else:
            tested = [_hash(question.prompt) % TESTED == 0 for question in found]
            self.questions = {
                split: [q for q, test in zip(found, tested, strict=True) if test == (split == "test")]
                for split in SPLITS
            }
        for split, questions in self.questions.items():
            if not questions:
                raise UserError(f"language.task = {path} has no question to {split}: give more questions")

    def size(self, split: str) -> int:
        """Questions of a split."""
        return len(self.questions[split])

    def question(self, split: str, number: int) -> Question:
        """The question of this number."""
        return self.questions[split][number % self.size(split)]

    def reward(self, completion: str, question: Question) -> float:
        """1 where the completion's last number is the answer's, 0 otherwise."""
        return float(last_number(completion) == last_number(question.answer.rpartition(FINAL)[2]))


def last_number(text: str) -> Decimal | None:
    """The last number of a text.

    >>> last_number("so 3 dozen are 1,036.0"), last_number("none"), last_number("#### .5"), last_number("from 3-7")
    (Decimal('1036.0'), None, Decimal('0.5'), Decimal('7'))
    """
    found = NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:  # more digits than a number may have
        return None


def _lines(path: Path) -> list[Question]:
    found = []
    try:
        for number, line in enumerate(reading.text(path).split("\n"), 1):  # JSON allows U+2028, a line's end, in texts
            if line.strip():
                found.append(_question(line, number))
    except ValueError as error:
        raise UserError(f"language.task = {path}: {error}") from None
    return found


def _question(line: str, number: int) -> Question:
    """A line as a question; raises ValueError."""
    try:
        told = reading.parsed(line)
        prompt, answer = told["question"], told["answer"]
    except (KeyError, TypeError):
        raise ValueError(f"line {number} is not an object with the keys question and answer") from None
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if not (isinstance(prompt, str) and prompt and isinstance(answer, str)):
        raise ValueError(f"line {number}: question and answer are texts, the question not empty")
    if last_number(answer.rpartition(FINAL)[2]) is None:
        raise ValueError(f"line {number}: the answer {shortened(answer)} ends in no number")
    return Question(prompt, answer)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
