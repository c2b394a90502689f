"""One frozen, validated model per stage: field = flag = JSON key; an unknown key is an error.

A configuration comes from a preset, a TOML or JSON file, or a run directory's ``config.json``, and
flags ``--stage.field value`` replace single fields. Whatever its origin it is validated once, here.
"""

from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from distqtrl.config.values import (
    BitWidth,
    Budget,
    Few,
    Folder,
    Fraction,
    Many,
    Positive,
    Rate,
    Shots,
    Stage,
    Table,
    Text,
    Whiten,
    Whole,
    Width,
    Widths,
    Wire,
)
from distqtrl.files import reading


class Circuit(Stage):
    """theta_P -> p_S: the parameterized circuit (arXiv 2407.06103)."""

    ansatz: Text = Field(
        "u3_cu3_ring", description="gate layout of one layer, by name; gates = the list in circuit.gates"
    )
    layers: Many = Field(3, description="L, how often the layout is repeated")
    qubits: Annotated[Whole, Field(ge=1, le=40)] | None = Field(
        None,
        description="n; none = as many as the mapping needs; expansion: the least with as many basis states as angles",
    )
    gates: tuple[tuple[Text, Wire] | tuple[Text, Wire, Wire], ...] = Field(
        (),
        max_length=10_000,
        description='one layer of your own as JSON, kind, target, control: [["ry", 0], ["x", 1, 0]]',
    )


class Qpu(Stage):
    """The device that runs the circuit on every rank."""

    backend: Text = Field(
        "statevector", description="device family: statevector (ours), torch, cuda, pennylane, aer, runtime"
    )
    device: Text | None = Field(
        None,
        description="pennylane: a device's name; torch, cuda: cpu, cuda, cuda:1; aer: a method; runtime: a backend's "
        "name, real or simulated (fake_manila)",
    )
    options: Table = Field(default_factory=dict, description="further arguments of that device, as JSON")
    precision: Literal["float64", "float32"] = Field(
        "float64", description="precision of the state (statevector, torch, cuda)"
    )
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
    shot_us: Rate = Field(
        250.0,
        description="microseconds of QPU time per shot in the ledger: an assumption, in whose place backend runtime "
        "puts the device's own durations",
    )
    replicas: Few = Field(
        1,
        description="K, ranks that one process hosts as threads, each with its QPU, learners and environments; on "
        "backend torch their circuits run as one batch",
    )
    per_rank: tuple[Table, ...] = Field(
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

    source: Text = Field(
        "circuit",
        description="where the probabilities (direct: the weights themselves) come from: circuit, frozen_circuit, "
        "frozen_random, free_vector, uniform; random_subspace: free numbers in their place; low_rank, tensor_train, "
        "direct: the weights themselves; equal_mlp = direct, in a policy with one hidden layer and as many weights as "
        "the circuit source trains numbers",
    )
    numbers: Positive | None = Field(
        None,
        description="random_subspace: how many free numbers; low_rank, tensor_train, equal_mlp: at most so many; none "
        "= as many as the circuit source trains",
    )
    whiten: Whiten = Field(
        None,
        description="train the angles in coordinates in which all directions move the weights alike: start = as at the "
        "start; every = made anew at optimizer steps (natural gradient); none = the angles themselves",
    )
    whiten_steps: Positive = Field(1, description="whiten every: optimizer steps from one metric to the next")
    damping: Fraction = Field(
        1e-3,
        gt=0,
        description="whiten: fraction of the mean eigenvalue that is added to all, so that idle directions stay idle",
    )


class MappingModel(Stage):
    """p_S -> w_M: the model from basis states and probabilities to policy weights."""

    kind: Text = Field(
        "gnn",
        description="gnn = graph network on the hypercube; mlp = the papers' MLP; expansion = a fixed random matrix",
    )
    trained: bool = Field(True, description="false = the network is drawn once and stays: only the source is trained")
    hidden: Widths = Field((8, 8), description="widths of the hidden layers")
    activation: Literal["tanh", "relu", "none"] = Field(
        "tanh", description="function between the network's layers; none = the papers' affine map"
    )
    chunk: Width = Field(1, description="weights made by one basis state; qubits = ceil(log2(ceil(M/chunk)))")
    codes: Few | None = Field(
        None, description="networks: so many learned numbers of every basis state in the place of its bits"
    )
    output: Literal["fan_in", "residual", "raw"] = Field(
        "fan_in",
        description="fan_in starts at the spread of a freshly initialised policy; residual starts at one, and adds "
        "what has changed since; raw is the papers' w - mean(w)",
    )
    gain: Rate = Field(1.0, description="residual: how far a change of the features moves the weights")
    feature: Text = Field(
        "tanh",
        description="what is read of a basis state's probability p: tanh = the papers', below; linear = 2^n p - 1; "
        "logarithm = log(2^n p); walsh = correlators of at most walsh_weight wires, times sqrt(2^n), in the place of "
        "probabilities",
    )
    walsh_weight: Positive = Field(2, description="walsh: wires in a correlator <Z..Z>, at most")
    gamma: Rate = Field(0.1, description="tanh: feature (beta*tanh(gamma*2^(n-1)*p))^alpha")
    beta: Rate = Field(1.0, description="tanh: beta in the feature of mapping.gamma")
    alpha: Rate = Field(1.0, description="tanh: alpha in the feature of mapping.gamma")


class Policy(Stage):
    """w_M, observation -> action: the classical network that acts."""

    convolutions: tuple[Text, ...] = Field(
        (),
        max_length=20,
        description="of an image, before the hidden layers: FILTERSxSIZE/STRIDE, such as 16x3 32x3/2; none",
    )
    hidden: Widths = Field((64,), description="widths of the hidden layers; none = linear policy")
    activation: Literal["tanh", "relu"] = Field("relu", description="function between the layers")
    normalize_observations: bool = Field(
        False, description="running mean and standard deviation, kept in the policy file"
    )
    log_std: float = Field(
        -0.5, ge=-50, le=50, description="initial log standard deviation of a Gaussian head, in units of half the range"
    )


class Quantize(Stage):
    """Training with the quantization of the exported policy (arXiv 2511.07046)."""

    aware: bool = Field(False, description="train the policy on integers; false = quantize after training, at export")
    input_bits: BitWidth = Field(8, description="bits of an observation")
    core_bits: tuple[BitWidth, ...] = Field(
        (4,),
        min_length=1,
        max_length=101,
        description="bits of weights and of the activation they write: one number, or one per layer",
    )
    output_bits: BitWidth = Field(8, description="bits of what the head reads")
    per: Literal["tensor", "channel"] = Field(
        "tensor", description="what a scale of weights, hidden activations and inputs is for"
    )
    narrow: bool = Field(True, description="weights symmetric, so 2 bits = -1, 0, 1; false = one more negative weight")
    percentile: float = Field(
        99.999, gt=0, le=100, description="percentile of absolute values that activation scales start at"
    )
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
    noise_start: Rate = Field(1e-2, description="standard deviation of the factors around 1, in the second stage")
    noise_end: Rate = Field(1e-4, description="standard deviation in the last stage")
    noise_stages: Whole = Field(10, ge=3, le=10**6, description="equal parts of the budget; no noise in the first")


class Environment(Stage):
    """Any Gymnasium or PettingZoo (parallel) environment: observations of fixed length, chosen or 1-D Box actions."""

    id: Text = Field(
        "CartPole-v1",
        description="Gymnasium's id, or package.module/environment_v0 of PettingZoo (mpe2/simple_spread_v3)",
    )
    local_num: Many = Field(4, description="E, environment copies on each rank")
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
    num_actions: Positive | None = Field(
        None, description="how many of the discrete actions, from the first on; none = all"
    )
    kwargs: Table = Field(default_factory=dict, description="arguments of the environment, as JSON")

    @model_validator(mode="after")
    def _image_has_two_sides(self) -> "Environment":
        if len(self.image) not in (0, 2):
            raise ValueError(f"environment.image takes rows and columns, such as 14 24, not {len(self.image)} numbers")
        return self


class Agents(Stage):
    """Several agents in one environment (PettingZoo): what they share."""

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

    name: Text = Field(
        "ppo",
        description="ppo: PPO-clip (1707.06347); reinforce; sac: soft actor-critic (1812.05905, bounded Box "
        "actions; 1910.07207, Discrete); grpo: of a language model (2402.03300)",
    )
    rollout: Literal["steps", "episodes"] = Field(
        "steps", description="an update uses rollout_steps steps, or one whole episode, of every environment"
    )
    loss: Literal["mean", "sum"] = Field(
        "mean", description="over an update's samples; sum = over each environment's, then the mean over environments"
    )
    rollout_steps: Many = Field(128, description="T, steps of every environment in one update")
    gamma: Fraction = Field(0.99, description="discount of a reward per step")
    gae_lambda: Fraction = Field(0.95, description="PPO's generalised advantage (1506.02438); REINFORCE uses 1")
    baseline: bool = Field(True, description="REINFORCE: subtract a value network (false: returns as they are)")
    normalize_advantages: bool = Field(True, description="advantages get zero mean and unit standard deviation")
    normalize_over: Literal["update", "episode"] = Field(
        "update",
        description="all ranks' samples of an update, or every episode by itself (n - 1 in its standard deviation)",
    )
    normalize_epsilon: Rate = Field(1e-8, description="added to the standard deviation that advantages are divided by")
    epochs: Positive = Field(4, description="PPO: passes over the rollout")
    minibatches: Positive = Field(1, description="PPO: optimizer steps per pass")
    clip: Rate = Field(0.2, description="PPO, GRPO: clip range of the probability ratio")
    clip_high: Rate | None = Field(None, description="GRPO: its upper end (DAPO, 2503.14476: 0.28); none = clip")
    cap: Rate | None = Field(
        None,
        description="GRPO: truncated importance sampling, upper bound of the importance weight",
    )
    target_kl: Rate | None = Field(
        None, description="PPO: an update ends when a minibatch's approx_kl exceeds this; none = it makes all its steps"
    )
    entropy: float = Field(0.0, ge=0, description="coefficient of the entropy bonus")
    value_weight: Rate = Field(0.5, description="coefficient of the value loss")
    value_hidden: Widths = Field((64, 64), description="widths of the value network, or of SAC's critics")
    learning_rate: Rate = Field(3e-3, description="Adam, circuit and mapping (and direct weights)")
    source_learning_rate: Rate | None = Field(
        None, description="Adam, angles or free parameters of the source; none = learning_rate"
    )
    value_learning_rate: Rate = Field(3e-3, description="Adam, value network, or critics and temperature")
    rate_scaling: Literal["none", "sqrt", "linear"] = Field(
        "none", description="all learning rates times the (root of the) number of ranks, whose samples an update uses"
    )
    warmup: Whole = Field(
        0,
        ge=0,
        le=10**9,
        description="updates in which the learning rates rise to their values; 0 = none",
    )
    anneal: bool = Field(False, description="let the learning rates fall linearly to 0 over the budget")
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="Adam, how much of the first moment is kept in a step (CrossQ: 0.5)"
    )
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
    policy_every: Positive = Field(2, description="SAC: steps of the critics between two rounds of steps of the policy")
    policy_steps: Positive | None = Field(
        None, description="SAC: steps of the policy in such a round; none = policy_every"
    )
    critic_norm: Literal["none", "batch_renorm", "layer_norm"] = Field(
        "none",
        description="SAC: batch_renorm = CrossQ (1902.05605), without target critics; layer_norm = before every ReLU, "
        "rows of weights of unit length",
    )
    renorm_warmup: Whole = Field(
        100_000, ge=0, le=10**12, description="batch_renorm: steps of the critics with a batch's own statistics alone"
    )
    tau: Fraction = Field(0.005, description="SAC: Polyak coefficient of the target critics, per gradient step")
    deviation_hidden: Widths = Field((64,), description="SAC: hidden widths of the standard deviation's network")
    temperature: Annotated[float, Field(gt=0, le=1e6)] = Field(1.0, description="SAC: initial entropy coefficient")
    target_entropy: float | None = Field(
        None, description="SAC: per action, before scaling, none = -A; of discrete ones a fraction of log A, none = 0.5"
    )
    max_grad_norm: Rate | None = Field(0.5, description="clip range of the reduced gradient's norm; none = no clipping")

    def rate_factor(self, ranks: int) -> float:
        """What every learning rate is multiplied by on so many ranks.

        >>> [Algorithm(rate_scaling=scaling).rate_factor(4) for scaling in ("none", "sqrt", "linear")]
        [1.0, 2.0, 4.0]
        """
        return {"none": 1.0, "sqrt": ranks**0.5, "linear": float(ranks)}[self.rate_scaling]


class Allreduce(Stage):
    """How ranks add up their gradients, and how long they wait for each other."""

    reduction: Literal["ordered", "tree", "fast"] = Field(
        "ordered",
        description="sum in rank order, or along a fixed tree for hundreds of ranks (both bitwise on any MPI), or the "
        "MPI's own Allreduce",
    )
    aggregation: Literal["mean", "sum", "average"] = Field(
        "mean", description="mean or sum of gradients over ranks; average = of parameters, every average_every updates"
    )
    average_every: Positive = Field(1, description="updates between two parameter averages")
    check_every: Positive = Field(10, description="updates between two comparisons of the ranks' parameters, by hash")
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
    keep: Literal["last", "best"] = Field(
        "last", description="the policy that a run leaves: the last one, or the one whose validation was the best"
    )
    episodes: Many = Field(100, description="episodes of the final evaluation (own seeds)")
    max_steps: Positive | None = Field(
        None,
        description="steps after which a greedy episode is cut; none = the environment's time limit, where it has none "
        "4 times the longest episode of training and at least 1000",
    )


class Train(Stage):
    """The budget, the seed, and what is written where."""

    steps: Budget | None = Field(100_000, description="budget in environment steps over all ranks; none = no limit")
    updates: Budget | None = Field(None, description="budget in updates; none = no limit")
    target: float | None = Field(None, description="stop when the smoothed return of training episodes reaches this")
    smoothing: Positive = Field(10, description="updates that the smoothed return is the mean of")
    seed: Whole = Field(0, ge=0, lt=2**32, description="one seed for everything that is drawn")
    precision: Literal["float32", "float64"] = Field(
        "float32", description="numbers of mapping, policy and value network"
    )
    threads: Few = Field(1, description="CPU threads per rank")
    checkpoint_every: Positive = Field(
        20, description="updates between two checkpoints; there is one, too, when 30 s of training are unsaved"
    )
    keep_checkpoints: Positive = Field(2, description="how many of the newest checkpoints stay")
    directory: Folder = Field("runs", description="where run directories are made")
    trackers: Annotated[tuple[Literal["wandb", "mlflow", "trackio"], ...], Field(max_length=3)] = Field(
        (), description="who is told beside TensorBoard, of wandb (offline), mlflow, trackio: each if it is installed"
    )
