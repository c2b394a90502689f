"""One frozen, validated model per stage: field = flag = JSON key; an unknown key is an error.

A configuration comes from a preset, a TOML or JSON file, or a run directory's ``config.json``, and
flags ``--stage.field value`` replace single fields. Whatever its origin it is validated once, here.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from distqtrl import reading

MOST_WEIGHTS = 2**27  # between two layers: half a GiB


def _whole(value: Any) -> Any:
    """TOML's 1e6 is a whole number, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _affordable(widths: tuple[int, ...]) -> tuple[int, ...]:
    for a, b in pairwise(widths):
        if a * b > MOST_WEIGHTS:
            raise ValueError(f"layers of {a:,} and {b:,} have more than {MOST_WEIGHTS:,} weights between them")
    return widths


Whole = Annotated[int, BeforeValidator(_whole)]
Positive = Annotated[Whole, Field(ge=1, le=10**9)]
Budget = Annotated[Whole, Field(ge=1, le=10**15)]  # exact in floating point
Width = Annotated[Whole, Field(ge=1, le=2**16)]
Widths = Annotated[tuple[Width, ...], Field(max_length=100), AfterValidator(_affordable)]
Few = Annotated[Whole, Field(ge=1, le=4096)]
Shots = Annotated[Whole, Field(ge=1, le=10**7)]
Many = Annotated[Whole, Field(ge=1, le=10**6)]
Wire = Annotated[Whole, Field(ge=0, le=1000)]
Rate = Annotated[float, Field(gt=0)]
BitWidth = Annotated[Whole, Field(ge=1, le=8)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=4096)]
Item = TypeVar("Item")
MANY = 20
BUDGET = ("train.steps", "train.updates", "train.target")
OUTPUT = ("train.checkpoint_every", "train.keep_checkpoints", "train.directory")


class UserError(Exception):
    """Bad input: its text is one line that names the thing, the value and the remedy."""

    exit_code = 2
    trace = ""  # where the user's own code raised, to be shown below that line


class Foreign(UserError):
    """Code that is not ours raised: its text is one line, ``trace`` the frames of that code."""

    exit_code = 1

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace


class Diverged(UserError):
    """A training cannot go on: its numbers are no numbers any more, or no integers can hold them."""


class Stage(BaseModel):
    """Base of the stages' models: frozen, unknown fields refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, values: Any) -> Any:
        """ "none" stands for nothing where a field may be left empty (TOML has no word for it)."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields.items()
        empty = {name for name, field in fields if type(None) in get_args(field.annotation)}
        lists = {name for name, field in fields if get_origin(field.annotation) is tuple}
        values = {name: None if name in empty and value == "none" else value for name, value in values.items()}
        return {name: _tuple(value) if name in lists else value for name, value in values.items()}


def _tuple(value: Any) -> Any:
    """Files have lists where fields are tuples."""
    return tuple(_tuple(x) for x in value) if isinstance(value, list) else value


class Circuit(Stage):
    """theta_P -> p_S: the parameterized circuit (arXiv 2407.06103)."""

    ansatz: Text = Field(
        "u3_cu3_ring", description="gate layout of one layer, by name; gates = the list in circuit.gates"
    )
    layers: Many = Field(3, description="L, how often the layout is repeated")
    gates: tuple[tuple[Text, Wire] | tuple[Text, Wire, Wire], ...] = Field(
        (),
        max_length=10_000,
        description='one layer of your own as JSON, kind, target, control: [["ry", 0], ["x", 1, 0]]',
    )


class Qpu(Stage):
    """The device that runs the circuit on every rank."""

    backend: Text = Field("statevector", description="device family: statevector (ours), torch, pennylane, aer")
    device: Text | None = Field(None, description="pennylane: a device's name; torch: cpu, cuda; aer: a method")
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of that device, as JSON")
    precision: Literal["float64", "float32"] = Field("float64", description="of the state (statevector, torch)")
    shots: Shots | None = Field(None, description="measurements per circuit; none = exact probabilities")
    noise: Text | None = Field(None, description="aer: a fake backend's name (FakeManilaV2) or a noise file (*.json)")
    gradient: Literal["auto", "adjoint", "backprop", "parameter-shift", "spsa"] = Field(
        "auto", description="auto = the device's exact method, parameter-shift with shots or noise"
    )
    shift: Literal["local", "distributed"] = Field(
        "local", description="parameter-shift circuits: every rank runs all of its own, or ranks share one gradient's"
    )
    spsa_step: Rate = Field(0.1, description="SPSA: half the distance of the two circuits, in radians")
    spsa_samples: Many = Field(1, description="SPSA: random directions averaged in one gradient")
    shot_us: Rate = Field(250.0, description="microseconds of QPU time per shot in the ledger (an assumption)")
    replicas: Few = Field(
        1,
        description="K, QPUs with their learners and environments that one process hosts, as K ranks would; on backend "
        "torch their circuits run as one batch",
    )
    per_rank: tuple[dict[str, Any], ...] = Field(
        (),
        max_length=10_000,
        description="fields of this stage that differ by rank, as a JSON list; rank r takes entry r modulo length",
    )

    def of_rank(self, rank: int) -> "Qpu":
        """The fields as they are on one rank."""
        own = self.per_rank[rank % len(self.per_rank)] if self.per_rank else {}
        return Qpu.model_validate({**self.model_dump(exclude={"per_rank"}), **own}, strict=True)

    @model_validator(mode="after")
    def _ranks_are_valid(self) -> "Qpu":
        for rank, own in enumerate(self.per_rank):
            odd = sorted({"per_rank", "shift", "replicas"} & own.keys())
            if odd:
                raise ValueError(f"entry {rank}: {odd[0]} is the same on every rank")
            try:
                self.of_rank(rank)
            except ValidationError as error:
                raise ValueError(f"entry {rank}: {reading.reason(error)}") from None
        return self


class Generator(Stage):
    """circuit + mapping as one module, and the controls that replace parts of it."""

    source: Literal["circuit", "frozen_circuit", "frozen_random", "free_vector", "uniform", "direct", "equal_mlp"] = (
        Field(
            "circuit",
            description="where the probabilities (direct: the weights themselves) come from; equal_mlp = direct, in a "
            "policy with one hidden layer and as many weights as the circuit source trains numbers",
        )
    )


class MappingModel(Stage):
    """p_S -> w_M: the model from basis states and probabilities to policy weights."""

    kind: Literal["gnn", "mlp"] = Field("gnn", description="graph network on the hypercube, or the papers' MLP")
    hidden: Widths = Field((8, 8), description="widths of the hidden layers")
    activation: Literal["tanh", "relu", "none"] = Field("tanh", description="none = the papers' affine map")
    chunk: Width = Field(1, description="weights made by one basis state; qubits = ceil(log2(ceil(M/chunk)))")
    output: Literal["fan_in", "raw"] = Field(
        "fan_in", description="fan_in starts like a freshly initialised policy; raw is the papers' w - mean(w)"
    )
    gamma: Rate = Field(0.1, description="feature (beta*tanh(gamma*2^(n-1)*p))^alpha")
    beta: Rate = Field(1.0, description="see gamma")
    alpha: Rate = Field(1.0, description="see gamma")


class Policy(Stage):
    """w_M, observation -> action: the classical network that acts."""

    hidden: Widths = Field((64,), description="widths of the hidden layers; none = linear policy")
    activation: Literal["tanh", "relu"] = Field("relu", description="between the layers")
    normalize_observations: bool = Field(False, description="running mean and deviation, kept in the policy file")
    log_std: float = Field(
        -0.5, ge=-50, le=50, description="initial log deviation of a Gaussian head, in units of half the range"
    )


class Quantize(Stage):
    """Training with the quantization of the exported policy (arXiv 2511.07046)."""

    aware: bool = Field(False, description="train the policy on integers; false = quantize after training, at export")
    input_bits: BitWidth = Field(8, description="of observations")
    core_bits: tuple[BitWidth, ...] = Field(
        (4,),
        min_length=1,
        max_length=101,
        description="of weights and the activation they write: one number, or one per layer",
    )
    output_bits: BitWidth = Field(8, description="of what the head reads")
    per: Literal["tensor", "channel"] = Field("tensor", description="scales of weights, hidden activations and inputs")
    narrow: bool = Field(True, description="weights symmetric, so 2 bits = -1, 0, 1; false = one more negative weight")
    percentile: float = Field(99.999, gt=0, le=100, description="of absolute values, what activation scales start at")
    warmup: Whole = Field(
        300, ge=0, le=10**9, description="optimizer steps until activation scales are learned by gradient"
    )


class Rollout(Stage):
    """The policy that acts while it is learned (QeRL, arXiv 2510.11696)."""

    precision: Text = Field(
        "none",
        description="actors' weights: nvfp4, mxfp4, int8, bfloat16, ...; learner and policy file stay as they are",
    )
    pad: bool = Field(False, description="fill a layer's inputs up with zeros to whole blocks of the format")
    noise: Literal["none", "exponential", "linear", "cosine", "constant"] = Field(
        "none", description="schedule of the noise on what every layer of the actors' policy reads"
    )
    noise_start: Rate = Field(1e-2, description="deviation of the factors around 1, in the second stage")
    noise_end: Rate = Field(1e-4, description="deviation in the last stage")
    noise_stages: Whole = Field(10, ge=3, le=10**6, description="equal parts of the budget; the first is silent")


class Adapter(Stage):
    """A frozen policy plus an update of low rank, whose factors the generator makes."""

    base: Text | None = Field(
        None, description="policy file of the frozen policy; none = weights are made, not adapted"
    )
    rank: Width = Field(4, description="of the factors of every layer's update")
    precision: Text = Field("none", description="number format of the frozen weights: nvfp4, mxfp4, int8, ...")
    pad: bool = Field(False, description="as rollout.pad")


class Environment(Stage):
    """Any Gymnasium or PettingZoo (parallel) environment: observations of fixed length, chosen or 1-D Box actions."""

    id: Text = Field(
        "CartPole-v1",
        description="Gymnasium's id, or package.module/environment_v0 of PettingZoo (mpe2/simple_spread_v3)",
    )
    local_num: Many = Field(4, description="B, environment copies on each rank")
    max_episode_steps: Positive | None = Field(None, description="time limit; none = the environment's own")
    observation: Text | None = Field(
        None,
        description="the part of a Dict observation that the policy sees, such as robot.position; none = all of it",
    )
    image: tuple[Width, ...] = Field(
        (),
        max_length=100,
        description="rows and columns to which an image is averaged, in grey; none = pixels as they are",
    )
    frames: Few = Field(1, description="how many of the last observations the policy sees at once")
    num_actions: Positive | None = Field(None, description="only the first so many discrete actions; none = all")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of the environment, as JSON")

    @model_validator(mode="after")
    def _image_has_two_sides(self) -> "Environment":
        if len(self.image) not in (0, 2):
            raise ValueError(f"environment.image takes rows and columns, such as 14 24, not {len(self.image)} numbers")
        return self


class Agents(Stage):
    """Several agents in one environment (PettingZoo): who shares what."""

    sharing: Literal["shared", "independent", "shared_circuit"] = Field(
        "shared",
        description="shared = one generated policy, which reads the agent's index; independent = a circuit and policy "
        "per agent; shared_circuit = one circuit, a mapping and a policy per agent or group",
    )
    heads: Literal["agent", "group"] = Field(
        "agent", description="shared_circuit: a mapping per agent, or per group of agents with equal spaces"
    )
    critic: Literal["independent", "centralised"] = Field(
        "independent",
        description="what the value network sees: the agent's observation, or the environment's state (MAPPO)",
    )
    reward: Literal["own", "team"] = Field(
        "own", description="what an agent learns from: its own reward, or the mean over all agents (0 for who has left)"
    )
    placement: Literal["all", "spread"] = Field(
        "all",
        description="independent: every rank hosts the QPUs of all agents, or of some, and learns those from its own "
        "environments",
    )


class Algorithm(Stage):
    """The loss, its rollout and its optimizer."""

    name: Literal["ppo", "reinforce", "sac"] = Field(
        "ppo", description="PPO-clip (1707.06347), REINFORCE, or soft actor-critic (1812.05905; bounded Box actions)"
    )
    rollout: Literal["steps", "episodes"] = Field(
        "steps", description="an update uses rollout_steps steps, or one whole episode, of every environment"
    )
    loss: Literal["mean", "sum"] = Field(
        "mean", description="over an update's samples; sum = over each environment's, then the mean over environments"
    )
    rollout_steps: Many = Field(128, description="T, steps of every environment in one update")
    gamma: Fraction = Field(0.99, description="discount per step")
    gae_lambda: Fraction = Field(0.95, description="PPO's generalised advantage (1506.02438); REINFORCE uses 1")
    baseline: bool = Field(True, description="REINFORCE: subtract a value network (false: returns as they are)")
    normalize_advantages: bool = Field(True, description="zero mean, unit deviation")
    normalize_over: Literal["update", "episode"] = Field(
        "update", description="all ranks' samples of an update, or every episode by itself (n - 1 in the deviation)"
    )
    normalize_epsilon: Rate = Field(1e-8, description="added to the deviation")
    epochs: Positive = Field(4, description="PPO: passes over the rollout")
    minibatches: Positive = Field(1, description="PPO: optimizer steps per pass")
    clip: Rate = Field(0.2, description="PPO: clip range of the probability ratio")
    target_kl: Rate | None = Field(
        None, description="PPO: an update ends when a minibatch's approx_kl exceeds this; none = it makes all its steps"
    )
    entropy: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    value_weight: Rate = Field(0.5, description="weight of the value loss")
    value_hidden: Widths = Field((64, 64), description="widths of the value network, or of SAC's critics")
    learning_rate: Rate = Field(3e-3, description="Adam, circuit and mapping (and direct weights)")
    value_learning_rate: Rate = Field(3e-3, description="Adam, value network, or critics and temperature")
    anneal: bool = Field(False, description="let the learning rates fall linearly to 0 over the budget")
    adam_epsilon: Rate = Field(1e-5, description="Adam, added to the root of the second moment")
    batch_size: Many = Field(256, description="SAC: samples of all ranks in one gradient step")
    replay: Annotated[Whole, Field(ge=1, le=10**8)] = Field(
        1_000_000, description="SAC: transitions that are kept, of all ranks"
    )
    learning_starts: Whole = Field(
        5000, ge=0, le=10**15, description="SAC: steps of all ranks with uniform actions before the first gradient step"
    )
    train_every: Positive = Field(
        1, description="SAC: steps of every environment between two rounds of gradient steps (divides rollout_steps)"
    )
    gradient_steps: Positive = Field(1, description="SAC: gradient steps per step of every environment")
    policy_every: Positive = Field(
        2, description="SAC: steps of the critics between two rounds of as many of the policy"
    )
    tau: Fraction = Field(0.005, description="SAC: how far the target critics follow in one gradient step")
    deviation_hidden: Widths = Field((64,), description="SAC: widths of the deviation's network")
    target_entropy: float | None = Field(None, description="SAC: per action, before scaling; none = -A")
    max_grad_norm: Rate | None = Field(0.5, description="clip range of the reduced gradient's norm; none = no clipping")

    @property
    def uses_values(self) -> bool:
        """Whether there is a value network."""
        return self.name == "ppo" or self.baseline


class Allreduce(Stage):
    """How ranks agree."""

    reduction: Literal["ordered", "tree", "fast"] = Field(
        "ordered",
        description="sum in rank order, or along a fixed tree for hundreds of ranks (both bitwise on any MPI), or the "
        "MPI's own Allreduce",
    )
    aggregation: Literal["mean", "sum", "average"] = Field(
        "mean", description="of gradients: mean or sum over ranks; average = parameters, every average_every updates"
    )
    average_every: Positive = Field(1, description="updates between two parameter averages")
    check_every: Positive = Field(10, description="updates between two comparisons of the replicas' hashes")
    timeout_s: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        1800.0, description="a rank that waits longer than this for the others ends the job; none = it waits for ever"
    )
    lost_rank: Literal["abort", "shrink"] = Field(
        "abort", description="shrink = the others go on without it (Open MPI 5: mpirun --with-ft ulfm)"
    )


class Evaluate(Stage):
    """Greedy episodes in separate environments."""

    every: Positive | None = Field(None, description="updates between two validations while training; none = never")
    validation_episodes: Many = Field(40, description="episodes of a validation (own seeds)")
    target: float | None = Field(None, description="stop when a validation's mean return reaches this")
    episodes: Many = Field(100, description="episodes of the final evaluation (own seeds)")
    max_steps: Positive | None = Field(
        None,
        description="steps after which a greedy episode is cut; none = the environment's time limit, where it has none "
        "4 times the longest episode of training and at least 1000",
    )


class Train(Stage):
    """Budget, seed, files."""

    steps: Budget | None = Field(100_000, description="budget in environment steps over all ranks; none = no limit")
    updates: Budget | None = Field(None, description="budget in updates; none = no limit")
    target: float | None = Field(None, description="stop when the smoothed return of training episodes reaches this")
    smoothing: Positive = Field(10, description="updates that the smoothed return is the mean of")
    seed: Whole = Field(0, ge=0, lt=2**32, description="one seed for everything")
    precision: Literal["float32", "float64"] = Field("float32", description="of mapping, policy and value network")
    threads: Few = Field(1, description="CPU threads per rank")
    checkpoint_every: Positive = Field(20, description="updates between two checkpoints")
    keep_checkpoints: Positive = Field(2, description="how many of the newest checkpoints stay")
    directory: Text = Field("runs", description="where run directories are made")


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
    environment: Environment = Environment()
    agents: Agents = Agents()
    algorithm: Algorithm = Algorithm()
    allreduce: Allreduce = Allreduce()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
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
        if a.target_kl is not None and self.allreduce.aggregation == "average":
            raise ValueError("algorithm.target_kl needs allreduce.aggregation mean or sum: ranks must stop alike")
        if a.name == "reinforce" and (self.rollout.precision, self.rollout.noise) != ("none", "none"):
            raise ValueError(
                "rollout.precision and rollout.noise need algorithm.name ppo or sac: REINFORCE has no importance ratio "
                "for samples of another policy"
            )
        if self.quantize.aware and (self.rollout.precision, self.rollout.noise) != ("none", "none"):
            raise ValueError(
                "quantize.aware true acts on integers already, which would round noise away: set rollout.precision and "
                "rollout.noise to none"
            )
        if self.qpu.shift == "distributed" and self.allreduce.aggregation == "average":
            raise ValueError(
                "qpu.shift distributed needs equal parameters on all ranks: use allreduce.aggregation mean or sum"
            )
        if self.qpu.replicas > 1 and self.qpu.shift == "distributed":
            raise ValueError("qpu.shift distributed shares one gradient's circuits over ranks: use qpu.replicas 1")
        if self.qpu.replicas > 1 and self.allreduce.lost_rank == "shrink":
            raise ValueError(
                "allreduce.lost_rank shrink needs qpu.replicas 1: a process that is lost takes all its own"
            )
        if a.normalize_over == "episode" and a.rollout == "steps":
            raise ValueError("algorithm.normalize_over episode needs algorithm.rollout episodes")
        self._fits_agents()
        if self.train.steps is None and self.train.updates is None:
            raise ValueError("train.steps none needs train.updates: a run has a budget in steps, in updates or in both")
        if self.evaluate.target is not None and self.evaluate.every is None:
            raise ValueError("evaluate.target needs evaluate.every: the target is compared with validations")
        return self

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
        if a.rollout != "steps" or a.rollout_steps % a.train_every:
            raise ValueError(
                "algorithm.name sac needs algorithm.rollout steps, and algorithm.rollout_steps a multiple of "
                f"algorithm.train_every ({a.rollout_steps} is not a multiple of {a.train_every})"
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


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy part of a message about an unknown name.

    >>> nearest("cartpol", ["acrobot", "cartpole"])
    "did you mean 'cartpole'?"
    >>> nearest("zzz", ["acrobot", "cartpole"])
    'known: acrobot, cartpole'
    """
    names = sorted(known)
    if not names:
        return "there is none to choose from"
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if len(names) <= MANY else "none of the known names is near; see --help"


def lookup(kind: str, name: str, table: Mapping[str, Item]) -> Item:
    """table[name]; raises UserError that names the nearest entry."""
    if name not in table:
        raise UserError(f"unknown {kind} {reading.shortened(name)}: {nearest(name, table)}")
    return table[name]


def field_names() -> list[str]:
    """Every key of a configuration, as ``stage.field``."""
    return [f"{stage}.{field}" for stage, model in stages().items() for field in model.model_fields]


def stages() -> dict[str, type[Stage]]:
    """The stages' names and models."""
    return {name: field.annotation for name, field in Config.model_fields.items()}  # type: ignore[misc]


def validated(values: Mapping[str, Any], origin: str, text: bool = False) -> Config:
    """The configuration made of nested values; raises UserError that names the key, the value and the remedy.

    text: numbers and truths may be words, as flags are.
    """
    try:
        return Config.model_validate(values, strict=not text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:2])
        if first["type"] == "extra_forbidden":
            known = field_names() if "." in key else Config.model_fields
            raise UserError(f"{origin}: unknown key {reading.shortened(key)}: {nearest(key, known)}") from None
        given = list(first["input"]) if isinstance(first["input"], tuple) else first["input"]
        value = "" if not key else f"{key} = {reading.shortened(given)}: "
        raise UserError(f"{origin}: {value}{first['msg'].removeprefix('Value error, ')}") from None


def with_flags(config: Config, flags: Mapping[str, str | list[str]]) -> Config:
    """The configuration with single fields replaced by flags ``stage.field`` given as text.

    >>> with_flags(Config(), {"circuit.layers": "5", "policy.hidden": ["32", "16"]}).policy.hidden
    (32, 16)
    """
    values = config.model_dump()
    for key, text in flags.items():
        stage, _, field = key.partition(".")
        if stage not in values or field not in values[stage]:
            raise UserError(f"unknown key '{key}': {nearest(key, field_names())}")
        values[stage][field] = _parsed(key, text, values[stage][field])
    return validated(values, "flags", text=True)


def _parsed(key: str, text: str | list[str], current: Any) -> Any:
    if key in ("circuit.gates", "qpu.per_rank"):  # lists of lists or tables
        return _json(key, text, '[["ry", 0], ["x", 1, 0]]' if key == "circuit.gates" else '[{"shots": 1024}, {}]')
    if isinstance(current, tuple):
        words = [text] if isinstance(text, str) else text
        return [word for part in words for word in part.replace(",", " ").split() if word != "none"]
    if isinstance(text, list):
        if len(text) != 1:
            raise UserError(f"flags: {key} takes one value, got {len(text)}: {' '.join(text)}")
        text = text[0]
    if isinstance(current, dict):
        return _json(key, text, '{"name": 1}')
    return text


def _json(key: str, text: str | list[str], example: str) -> Any:
    text = text if isinstance(text, str) else " ".join(text)
    try:
        return reading.parsed(text)
    except ValueError as error:
        cause = str(error).removeprefix("it is not JSON: ")
        raise UserError(
            f"flags: {key} = {reading.shortened(text)} is not JSON ({cause}); write --{key} '{example}'"
        ) from None


def presets() -> dict[str, str]:
    """Names of the presets that are shipped, each with the first line of its file."""
    folder = resources.files("distqtrl") / "presets"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text().splitlines()[0].lstrip("# ") for f in files}


def preset(name: str) -> Config:
    """A shipped preset; raises UserError that names the nearest one."""
    return validated(_extended(_preset_values(name)), f"preset {name}")


def parent(name: str) -> str | None:
    """The preset that a preset extends."""
    return _preset_values(name).get("extends")


def _preset_values(name: str) -> dict[str, Any]:
    lookup("preset", name, presets())
    return reading.toml((resources.files("distqtrl") / "presets" / f"{name}.toml").read_text())


def _extended(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those of the preset named by ``extends`` below them."""
    own = {key: value for key, value in values.items() if key != "extends"}
    if "extends" not in values:
        return own
    below = _extended(_preset_values(str(values["extends"])))
    for stage, fields in own.items():
        below[stage] = {**below.get(stage, {}), **fields} if isinstance(fields, dict) else fields
    return below


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """``stage.field`` -> (in a, in b) of every field that differs.

    >>> differences(Config(), with_flags(Config(), {"circuit.layers": "5"}))
    {'circuit.layers': (3, 5)}
    """
    old, new = a.model_dump(mode="json"), b.model_dump(mode="json")
    pairs = ((f"{stage}.{field}", old[stage][field], x) for stage in new for field, x in new[stage].items())
    return {key: (x, y) for key, x, y in pairs if x != y}


def may_change(key: str) -> bool:
    """Whether a run may go on with another value of this field: its budget, targets, evaluations and output."""
    return key.startswith("evaluate.") or key in (*BUDGET, *OUTPUT)


def load(path: Path) -> Config:
    """A configuration file, TOML or JSON; raises UserError when it cannot be read or is not valid."""
    try:
        text = reading.text(path)
        values = reading.parsed(text) if path.suffix.lower() == ".json" else reading.toml(text)
    except ValueError as error:
        raise UserError(f"cannot read configuration {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"cannot read configuration {path}: it holds no table of stages")
    try:
        values = _extended(values)
    except UserError as error:
        raise UserError(f"{path}: extends: {error}") from None
    return validated(values, str(path))


def save(config: Config) -> str:
    """The configuration as the text of ``config.json``."""
    return json.dumps(config.model_dump(mode="json"), indent=2) + "\n"


def refuse(qpu: Qpu, backend: str, fields: Iterable[str]) -> None:
    """Raise UserError for a field that was set although this backend has no use for it."""
    default = Qpu()
    for name in fields:
        if getattr(qpu, name) != getattr(default, name):
            raise UserError(f"qpu.{name} = {getattr(qpu, name)!r} has no meaning for qpu.backend {backend}: remove it")
