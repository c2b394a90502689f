"""The whole configuration: every stage, and the conditions between stages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from distqtrl.config.frozen import Adapter, Language
from distqtrl.config.stages import (
    Agents,
    Algorithm,
    Allreduce,
    Circuit,
    Environment,
    Evaluate,
    Generator,
    MappingModel,
    Policy,
    Qpu,
    Quantize,
    Rollout,
    Train,
)
from distqtrl.config.values import Stage
from distqtrl.errors import UserError, nearest, shortened

BUDGET = ("train.steps", "train.updates", "train.target")


OUTPUT = ("train.checkpoint_every", "train.keep_checkpoints", "train.directory", "train.trackers")


class Config(BaseModel):
    """A whole run, one field per stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Train = Train()
    circuit: Circuit = Circuit()
    qpu: Qpu = Qpu()
    generator: Generator = Generator()
    mapping: MappingModel = MappingModel()
    policy: Policy = Policy()
    quantize: Quantize = Quantize()
    rollout: Rollout = Rollout()
    adapter: Adapter = Adapter()
    language: Language = Language()
    environment: Environment = Environment()
    agents: Agents = Agents()
    algorithm: Algorithm = Algorithm()
    allreduce: Allreduce = Allreduce()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        self._fits_algorithm()
        self._fits_rounding()
        self._fits_ranks()
        self._fits_agents()
        self._fits_budget()
        return self

    @property
    def subject(self) -> str:
        """What is learned from: the environment, or the language model's task."""
        return Path(self.language.task).name if self.algorithm.name == "grpo" else self.environment.id

    @property
    def local_num(self) -> int:
        """Environments of a rank, or prompts."""
        return self.language.prompts if self.algorithm.name == "grpo" else self.environment.local_num

    @property
    def rollout_steps(self) -> int:
        """Steps of every environment in one update, where that is known: completions of a prompt."""
        return self.language.group if self.algorithm.name == "grpo" else self.algorithm.rollout_steps

    def _fits_algorithm(self) -> None:
        a = self.algorithm
        if a.rollout == "steps" and a.name == "reinforce" and not a.baseline:
            raise ValueError(
                "algorithm.baseline false needs algorithm.rollout episodes: a rollout cut inside an episode "
                "is bootstrapped by the value network"
            )
        if a.name == "ppo" and a.rollout == "steps" and a.minibatches > a.rollout_steps:
            raise ValueError(
                f"algorithm.minibatches = {a.minibatches} leaves minibatches empty: every environment's "
                f"{a.rollout_steps} steps (algorithm.rollout_steps) are dealt out over them: lower it"
            )
        if a.name == "sac":
            self._fits_sac()
        elif a.critic_norm != "none":
            raise ValueError(
                f"algorithm.critic_norm = {a.critic_norm} normalises SAC's critics, algorithm.name {a.name} has none: "
                "set algorithm.critic_norm to none, or algorithm.name to sac"
            )
        if self.language.base is not None and a.name != "grpo":
            raise ValueError(
                f"language.base, a language model, is trained by algorithm.name grpo, not {a.name}: set that to grpo"
            )
        if a.normalize_over == "episode" and a.rollout == "steps":
            raise ValueError("algorithm.normalize_over episode needs algorithm.rollout episodes")

    def _fits_rounding(self) -> None:
        if self.algorithm.name == "reinforce" and (self.rollout.precision, self.rollout.noise) != ("none", "none"):
            raise ValueError(
                "rollout.precision and rollout.noise need algorithm.name ppo or sac: REINFORCE has no importance ratio "
                "for samples of another policy"
            )
        if self.quantize.aware and (self.rollout.precision, self.rollout.noise) != ("none", "none"):
            raise ValueError(
                "quantize.aware true acts on integers already, which would round noise away: set rollout.precision and "
                "rollout.noise to none"
            )
        changed = self.adapter.base, self.rollout.precision, self.rollout.noise
        if self.policy.convolutions and changed != (None, "none", "none"):
            raise ValueError(
                "policy.convolutions repeat their weights, which adapter.base, rollout.precision and rollout.noise "
                "would change one by one: set these to none"
            )

    def _fits_ranks(self) -> None:
        a = self.algorithm
        if a.target_kl is not None and self.allreduce.aggregation == "average":
            raise ValueError("algorithm.target_kl needs allreduce.aggregation mean or sum: ranks must stop alike")
        if a.rate_scaling != "none" and self.allreduce.aggregation == "average":
            raise ValueError(
                f"algorithm.rate_scaling {a.rate_scaling} needs allreduce.aggregation mean or sum: ranks that average "
                "parameters step on their own samples alone"
            )
        if self.generator.whiten == "every" and self.allreduce.aggregation == "average":
            raise ValueError(
                "generator.whiten every needs equal parameters on all ranks: use allreduce.aggregation mean or sum, or "
                "generator.whiten start"
            )
        if self.qpu.shift == "distributed" and self.allreduce.aggregation == "average":
            raise ValueError(
                "qpu.shift distributed needs equal parameters on all ranks: use allreduce.aggregation mean or sum"
            )
        if self.qpu.replicas > 1 and self.qpu.shift == "distributed":
            raise ValueError("qpu.shift distributed shares one gradient's circuits over ranks: use qpu.replicas 1")
        if self.qpu.replicas > 1 and self.allreduce.lost_rank == "shrink":
            raise ValueError(
                "allreduce.lost_rank shrink needs qpu.replicas 1: a process that is lost takes all its threads with it"
            )

    def _fits_budget(self) -> None:
        if self.train.steps is None and self.train.updates is None:
            raise ValueError("train.steps none needs train.updates: a run has a budget in steps, in updates or in both")
        if self.evaluate.target is not None and self.evaluate.every is None:
            raise ValueError("evaluate.target needs evaluate.every: the target is compared with validations")
        if self.evaluate.keep == "best" and self.evaluate.every is None:
            raise ValueError(
                "evaluate.keep best needs evaluate.every (validations say which is the best): set that, or keep to last"
            )
        if self.evaluate.keep == "best" and self.algorithm.name == "grpo":
            raise ValueError(
                "evaluate.keep best is of networks, a language model leaves its last: set evaluate.keep to last"
            )

    def _fits_agents(self) -> None:
        if self.agents.placement == "all":
            return
        if self.agents.sharing != "independent":
            raise ValueError(
                f"agents.placement spread needs agents.sharing independent, not {self.agents.sharing}: all ranks need "
                "what agents share"
            )
        wanted = {"allreduce.aggregation": "mean", "allreduce.lost_rank": "abort", "qpu.replicas": 1}
        for key, value in (wanted | {"quantize.aware": False, "qpu.shift": "local"}).items():
            stage, _, field = key.partition(".")
            if getattr(getattr(self, stage), field) != value:
                raise ValueError(f"agents.placement spread needs {key} {str(value).lower()}")

    def _fits_sac(self) -> None:
        a = self.algorithm
        if a.rollout != "steps":
            raise ValueError(f"algorithm.name sac needs algorithm.rollout steps, not {a.rollout}")
        if a.rollout_steps % a.train_every:
            raise ValueError(
                f"algorithm.name sac needs algorithm.rollout_steps to be a multiple of algorithm.train_every "
                f"({a.rollout_steps} is not a multiple of {a.train_every})"
            )
        if a.rollout_steps * a.gradient_steps % a.policy_every:
            raise ValueError(
                f"algorithm.policy_every = {a.policy_every} must divide an update's gradient steps, "
                f"algorithm.rollout_steps x algorithm.gradient_steps = {a.rollout_steps * a.gradient_steps}"
            )
        if self.allreduce.aggregation != "mean":
            raise ValueError("algorithm.name sac needs allreduce.aggregation mean: its ranks share every gradient step")
        if self.allreduce.lost_rank == "shrink":
            raise ValueError(
                "algorithm.name sac needs allreduce.lost_rank abort: the replay of a lost rank is lost; resume instead"
            )
        if self.train.steps is not None and a.learning_starts >= self.train.steps:
            raise ValueError(
                f"algorithm.learning_starts = {a.learning_starts} leaves nothing of train.steps = {self.train.steps} "
                f"to learn in: lower it, or train longer"
            )


def field_names() -> list[str]:
    """Every key of a configuration, as ``stage.field``."""
    return [f"{stage}.{field}" for stage, model in stages().items() for field in model.model_fields]


def stages() -> dict[str, type[Stage]]:
    """The stages' names and models."""
    return {name: field.annotation for name, field in Config.model_fields.items()}  # type: ignore[misc]


def validated(values: Mapping[str, Any], origin: str, text: bool = False) -> Config:
    """The configuration made of nested values; raises UserError that names the key, the value and the remedy.

    text: numbers and booleans may be words, as flags are.
    """
    try:
        return Config.model_validate(values, strict=not text, context={"kept": True})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:2])
        if first["type"] == "extra_forbidden":
            known = field_names() if len(first["loc"]) > 1 else Config.model_fields
            remedy = _place_of(first["loc"]) or nearest(key, known)
            raise UserError(f"{origin}: unknown key {shortened(key)}: {remedy}") from None
        given = list(first["input"]) if isinstance(first["input"], tuple) else first["input"]
        value = "" if not key else f"{key} = {shortened(given)}: "
        words = "give a list" if first["type"] == "tuple_type" else first["msg"].removeprefix("Value error, ")
        raise UserError(f"{origin}: {value}{words}") from None


def _place_of(keys: Sequence[int | str]) -> str:
    """Where a key belongs that stands in the wrong place of a file."""
    stage, _, field = str(keys[-1]).partition(".")
    if keys[-1] in field_names():
        return f"write {field} in the table {stage}"
    return "move it above all tables" if len(keys) > 1 and keys[-1] == "extends" else ""


def flat(config: Config) -> dict[str, Any]:
    """``stage.field`` -> value, as JSON has it.

    >>> flat(Config())["circuit.layers"]
    3
    """
    stages = config.model_dump(mode="json").items()
    return {f"{stage}.{field}": value for stage, fields in stages for field, value in fields.items()}


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """``stage.field`` -> (in a, in b) of every field that differs.

    >>> differences(Config(), validated({"circuit": {"layers": 5}}, "here"))
    {'circuit.layers': (3, 5)}
    """
    old, new = flat(a), flat(b)
    return {key: (old[key], x) for key, x in new.items() if old[key] != x}


def may_change(key: str) -> bool:
    """Whether a run may go on with another value of this field: its budget, targets, evaluations and output."""
    return key.startswith("evaluate.") or key in (*BUDGET, *OUTPUT)


def save(config: Config) -> str:
    """The configuration as the text of ``config.json``."""
    return json.dumps(config.model_dump(mode="json"), indent=2) + "\n"


def refuse(qpu: Qpu, backend: str, fields: Iterable[str]) -> None:
    """Raise UserError for a field that was set although this backend has no use for it."""
    default = Qpu()
    for name in fields:
        if getattr(qpu, name) != getattr(default, name):
            raise UserError(f"qpu.{name} = {getattr(qpu, name)!r} has no meaning for qpu.backend {backend}: remove it")
