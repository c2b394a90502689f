"""A decoder's update as a file, and what the decoder with it answers.

Tensors ``factors_F`` and ``start_F`` (see ``model``); the description says which decoder they belong to, by its files'
SHA-256, and what it was trained for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distqtrl import seeding
from distqtrl.config.frozen import Adapter, Language
from distqtrl.errors import UserError
from distqtrl.files import places, schema
from distqtrl.files import tensors as tensorfile
from distqtrl.files.schema import Count, Record, Sha256
from distqtrl.language import checkpoint, sampler, tasks
from distqtrl.language.model import Model
from distqtrl.language.questions import Question, Task
from distqtrl.language.sampler import Completions

FORMAT = "distqtrl decoder's update 1"
REMEDY = "give the policy.safetensors of a run that trained a language model, or train it again"
BATCH = 256  # questions that are answered at a time
ENDLESS = 2**31  # numbers of the questions of a task without an end
FORMS = {"merged": checkpoint.merged, "adapter": checkpoint.adapter}  # how others load a decoder with its update
SPLITS = {"validation": "train", "evaluation": "test"}


class Origin(Record):
    """Where an update comes from."""

    source: str
    env_steps: Count
    seed: Count


class Description(Record):
    """What the file holds besides tensors."""

    format: Literal["distqtrl decoder's update 1"]
    base_sha256: Sha256
    language: dict[str, Any]
    adapter: dict[str, Any]
    precision: Literal["float32", "float64"]
    origin: Origin


@dataclass
class Adapted:
    """A decoder with an update. ``origin`` says what made the factors, after how many completions, from which seed."""

    factors_F: Tensor
    start_F: Tensor
    sha256: str  # of the base's files
    language: Language
    adapter: Adapter
    precision: Literal["float32", "float64"]
    origin: dict[str, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """For copies, and processes of the user's: neither the decoder nor the task's process."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def save(self, path: places.Place) -> None:
        """Write the file, whole or not at all; raises UserError where no file can have that name, and OSError."""
        about = {
            "format": FORMAT,
            "base_sha256": self.sha256,
            "language": self.language.model_dump(mode="json"),
            "adapter": self.adapter.model_dump(mode="json"),
            "precision": self.precision,
            "origin": {key: self.origin[key] for key in Origin.model_fields},
        }
        tensors = {"factors_F": self.factors_F.double().numpy(), "start_F": self.start_F.double().numpy()}
        tensorfile.write(places.path("path", path), about, tensors)

    @cached_property
    def model(self) -> Model:
        """The decoder, read from its directory; raises UserError where that is not the one of training."""
        assert self.language.base is not None
        if not Path(self.language.base).is_dir():
            raise UserError(
                f"{self.language.base} is not a directory here, and held the decoder that this update was trained for "
                f"(SHA-256 {self.sha256[:12]}): bring it back, or run this where that path leads to it"
            )
        found = checkpoint.opened(Path(self.language.base))
        if found.sha256 != self.sha256:
            raise UserError(
                f"{self.language.base} (SHA-256 {found.sha256[:12]}) is not the decoder that this update was trained "
                f"for ({self.sha256[:12]}): bring that one back"
            )
        return _started(
            Model(found, self.adapter.precision, self.adapter.rank, self.language.targets, self._dtype), self
        )

    @cached_property
    def task(self) -> Task:
        """What it was trained for."""
        return tasks.opened(self.language.task)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "float32" else torch.float64

    def with_model(self, model: Model, task: Task) -> "Adapted":
        """This object, with a model and a task that are in memory already."""
        self.__dict__ |= {"model": model, "task": task}
        return self


def written(place: Path) -> Path | None:
    """The file of an update: this one, or that of this run; None where it is of another kind, or there is none."""
    path = place / "policy.safetensors" if place.is_dir() else place
    return path if tensorfile.kind(path) == FORMAT else None


def load(path: Path) -> Adapted:
    """The update of a file; raises UserError where it is none, or damaged."""
    about, tensors = tensorfile.read(path, FORMAT, REMEDY)
    try:
        told = schema.checked(Description, about)
        tensorfile.check(tensors, {"factors_F": (np.float64, (None,)), "start_F": (np.float64, (None,))})
        language, adapter = Language(**told.language), Adapter(**told.adapter)
    except ValueError as error:
        raise UserError(f"{path} is not a decoder's update ({error}): {REMEDY}") from None
    return Adapted(
        factors_F=torch.from_numpy(tensors["factors_F"]),
        start_F=torch.from_numpy(tensors["start_F"]),
        sha256=told.base_sha256,
        language=language,
        adapter=adapter,
        precision=told.precision,
        origin=told.origin.model_dump(),
    )


def answers(
    adapted: Adapted,
    questions: Sequence[Question],
    streams: Sequence[np.random.Generator] = (),
    temperature: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and lengths of completions of the questions: the likeliest ones, or drawn from streams, one for each."""
    model, task, rewards, lengths = adapted.model, adapted.task, [], []
    prompts = [model.checkpoint.tokens(question.prompt) for question in questions]
    for first in range(0, len(questions), BATCH):
        part = slice(first, first + BATCH)
        done = sampler.complete(
            model,
            adapted.factors_F,
            prompts[part],
            streams[part],
            max_tokens=adapted.language.max_tokens,
            temperature=temperature,
            greedy=not streams,
        )
        rewards += [task.reward(*each) for each in zip(texts(model, done), questions[part], strict=True)]
        lengths += done.length_N.tolist()
    return np.array(rewards, dtype=np.float64), np.array(lengths, dtype=np.float64)


def questions(task: Task, purpose: str, number: int, indices: Sequence[int], seed: int = 0) -> list[Question]:
    """Those of a validation, which are training's, or of an evaluation, which are tests', by their places."""
    return [asked(task, SPLITS[purpose], seeding.stream(seed, purpose, i, number)) for i in indices]


def asked(task: Task, split: str, rng: np.random.Generator) -> Question:
    """A question of a split, every one as likely."""
    return task.question(split, int(rng.integers(task.size(split) or ENDLESS)))


def texts(model: Model, done: Completions) -> list[str]:
    """Completions as text."""
    rows = zip(done.tokens_NT.tolist(), done.length_N.tolist(), strict=True)
    return [model.checkpoint.text(tokens[:length]) for tokens, length in rows]


def _started(model: Model, adapted: Adapted) -> Model:
    """The model with the update's own start; raises UserError where their sizes differ."""
    if not len(adapted.start_F) == len(adapted.factors_F) == model.num_factors:
        raise UserError(
            f"this update has {len(adapted.factors_F):,} numbers, {adapted.language.base} takes {model.num_factors:,}: "
            f"{REMEDY}"
        )
    model.start(adapted.start_F)
    return model
