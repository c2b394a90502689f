"""A task of the user's own: a module in a process beside this one, which is ended when it does not answer."""

import json
import select
import subprocess
import sys
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from distqtrl.config.values import finite
from distqtrl.errors import Foreign, UserError, shortened
from distqtrl.files import reading
from distqtrl.language import verifier
from distqtrl.language.questions import Question

LIMIT_S, START_S = 10.0, 300.0  # of one reward or question; of the import and of all questions
NEEDED = "define reward(completion, answer), and questions(split) or question(split, number)"


class Own:
    """Questions and rewards of a .py file; limit_s: what one call may take. Raises UserError and Foreign."""

    def __init__(self, path: Path, limit_s: float = LIMIT_S) -> None:
        self.path, self.limit_s = path, limit_s
        try:
            reading.regular(path)
        except ValueError as error:
            raise UserError(f"language.task = {path}: {error}: give a module that defines {NEEDED[7:]}") from None
        self.process = subprocess.Popen(
            [sys.executable, "-P", verifier.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is this process's, which then stops in its own time
        )
        self._finalizer = weakref.finalize(self, _end, self.process)
        names = self._called("import", str(path.resolve()), what="import", limit_s=START_S)
        if "reward" not in names or not {"questions", "question"} & set(names):
            self.close()
            raise UserError(f"language.task = {path} has not what a task needs: {NEEDED}")
        self.listed = "questions" in names
        self.questions = cache(self._questions)

    def close(self) -> None:
        """End the process."""
        self._finalizer()

    def size(self, split: str) -> int | None:
        """Questions of a split; None where ``question`` makes any."""
        return len(self.questions(split)) if self.listed else None

    def question(self, split: str, number: int) -> Question:
        """The question of this number."""
        if self.listed:
            questions = self.questions(split)
            return questions[number % len(questions)]
        what = f"question({split!r}, {number})"
        return self._question(self._called("question", split, number, what=what), what)

    def reward(self, completion: str, question: Question) -> float:
        """What the module says; raises UserError where that is no finite number."""
        what = f"the reward of the prompt {shortened(question.prompt)}"
        found = self._called("reward", completion, question.answer, what=what)
        number = float(found) if isinstance(found, bool) else finite(found)
        if number is None:
            raise self._refusal(f"{what} is {shortened(found)}: return a finite number")
        return number

    def _questions(self, split: str) -> list[Question]:
        what = f"questions({split!r})"
        found = self._called("questions", split, what=what, limit_s=START_S)
        if not isinstance(found, list) or not found:
            raise self._refusal(f"{what} is {shortened(found)}: return a list of (prompt, answer)")
        return [self._question(item, what) for item in found]

    def _question(self, found: Any, what: str) -> Question:
        prompt, answer = found if isinstance(found, list) and len(found) == 2 else (None, None)
        if not (isinstance(prompt, str) and prompt and isinstance(answer, str)):
            raise self._refusal(f"{what} has {shortened(found)}: a question is (prompt, answer), both texts")
        return Question(prompt, answer)

    def _refusal(self, problem: str) -> UserError:
        return UserError(f"language.task = {self.path}: {problem}")

    def _called(self, *call: Any, what: str, limit_s: float | None = None) -> Any:
        """What a function returns; its process is ended where it takes too long."""
        limit_s = self.limit_s if limit_s is None else limit_s
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = ""
        try:
            self.process.stdin.write(json.dumps(call) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], limit_s)[0]:
                self.process.kill()
                self.close()
                raise self._refusal(f"{what} took more than {limit_s:g} s: make it faster")
            line = self.process.stdout.readline()
        except (BrokenPipeError, ValueError):  # closed
            pass
        if not line:
            self.close()
            raise self._refusal(f"its process ended in {what}: see what it wrote above")
        told = json.loads(line)
        if "error" in told:
            raise Foreign(f"language.task = {self.path}: {what} failed: {told['error']}", told["trace"])
        return told["value"]


def _end(process: "subprocess.Popen[str]") -> None:
    """The process ends by itself where its input does."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
