"""What is trained where the policy is a language model: a decoder, and the task that says what a completion earns."""

from dataclasses import dataclass
from pathlib import Path

import torch

from distqtrl.config.frozen import Adapter
from distqtrl.config.run import Config
from distqtrl.environment.vector import Role
from distqtrl.errors import UserError
from distqtrl.generator.factors import Layers
from distqtrl.language import checkpoint, sampler, tasks
from distqtrl.language.model import Model
from distqtrl.language.questions import SPLITS, Task

NONE = (
    "language.base is not set: give the directory of a language model; distqtrl pretrain arithmetic -o base makes one"
)


@dataclass(frozen=True)
class Decoder:
    """The one policy of a run of GRPO (see roles.Spec): its weights are the factors of the decoder's update."""

    model: Model
    task: Task
    max_tokens: int
    agents: Role = ("model",)
    num_statistics: int = 0  # of a normaliser

    def layers(self, config: Adapter) -> Layers:
        """(number of weights, fan-in) of what is generated."""
        return self.model.layers

    @property
    def num_weights(self) -> int:
        """How many factors."""
        return self.model.num_factors

    @property
    def sha256(self) -> str:
        """The digest of the base's files."""
        return self.model.checkpoint.sha256

    @property
    def words(self) -> str:
        """The policy, for people."""
        model = self.model
        family, rank = model.checkpoint.config.model_type, model.rank
        return f"{family}, {model.num_weights:,} frozen weights, updates of rank {rank} of {len(model.adapted)} layers"


def specs(config: Config) -> tuple[Decoder]:
    """The policy; raises UserError for a base or task that cannot be used, and settings without a meaning here."""
    language, adapter = config.language, config.adapter
    if language.base is None:
        raise UserError(NONE)
    _check(config)
    dtype = torch.float32 if config.train.precision == "float32" else torch.float64
    found = checkpoint.opened(Path(language.base))
    model = Model(found, adapter.precision, adapter.rank, language.targets, dtype)
    task = tasks.opened(language.task)
    _check_questions(model, task, language.max_tokens)
    return (Decoder(model, task, language.max_tokens),)


def _check_questions(model: Model, task: Task, max_tokens: int) -> None:
    """Raise UserError now for questions of training or tests that would end it later; of endless ones, the first."""
    for split in SPLITS:
        prompts = (task.question(split, number).prompt for number in range(task.size(split) or 1))
        sampler.check(model, max(len(model.checkpoint.tokens(prompt)) for prompt in prompts), max_tokens)


def _check(config: Config) -> None:
    """Raise UserError for settings of networks that a language model has no use for."""
    adapted, integers = config.adapter.base, config.quantize.aware
    aggregation, source = config.allreduce.aggregation, config.generator.source
    filters, temperature = config.policy.convolutions, config.algorithm.temperature
    for key, value, meaningless, why in (
        ("adapter.base", adapted, adapted is not None, "language.base is what is adapted"),
        ("quantize.aware", integers, integers, "adapter.precision rounds a decoder"),
        ("allreduce.aggregation", aggregation, aggregation == "average", "the divisor is the tokens of all ranks"),
        ("generator.source", source, source == "equal_mlp", "it is a network's control"),
        ("policy.convolutions", " ".join(filters), bool(filters), "a decoder reads tokens"),
        ("algorithm.temperature", temperature, temperature != 1, "completions are drawn at language.temperature"),
    ):
        if meaningless:
            raise UserError(f"{key} = {value} has no meaning with algorithm.name grpo ({why}): leave it out")
