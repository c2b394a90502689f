"""Who plays whom, and with what: the agents of every policy, and the network and head that fit what they see and do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from distqtrl.config import stages as configuration
from distqtrl.config.run import Config
from distqtrl.config.stages import Agents, Qpu
from distqtrl.environment.spaces import Spaces
from distqtrl.environment.vector import Environments, Role
from distqtrl.errors import UserError
from distqtrl.generator.generator import Generator
from distqtrl.policy.distribution import Categorical, Factored, Gaussian, Head, SquashedGaussian
from distqtrl.policy.network import Architecture


def architectures(config: Config, environments: Environments) -> list[tuple[Architecture, Head]]:
    """Network and head of every role's policy."""
    found = [
        (environments.spaces[role[0]], width)
        for role, width in zip(environments.roles, environments.widths, strict=True)
    ]
    return [policy_for(config, spaces, width - spaces.num_masks) for spaces, width in found]


def num_states(environments: Environments, role: Role) -> int:
    """How many numbers a role's centralised critic sees: the state, and which of several agents it is about."""
    states = environments.states_ES
    return 0 if states is None else states.shape[1] + (len(role) if len(role) > 1 else 0)


def policy_for(config: Config, spaces: Spaces, num_inputs: int = 0) -> tuple[Architecture, Head]:
    """The network and head that fit an environment; ``equal_mlp`` gets the hidden width that trains as many numbers.

    num_inputs: what the policy reads, where that is more than an observation.
    """
    head = _head(config, spaces)
    p = config.policy
    architecture = Architecture(num_inputs or spaces.num_observations, p.hidden, head.num_outputs, p.activation)
    if config.generator.source == "equal_mlp":
        architecture = _equal_mlp(config, architecture)
    return architecture, head


def _head(config: Config, spaces: Spaces) -> Head:
    sac = config.algorithm.name == "sac"
    if spaces.low:
        return SquashedGaussian(spaces.low, spaces.high) if sac else Gaussian(spaces.low, spaces.high)
    if sac:
        found = f"{spaces.num_actions} discrete ones" if spaces.num_actions else f"choices among {spaces.factors}"
        raise UserError(
            f"algorithm.name = sac needs continuous actions, {config.environment.id} has {found}: use algorithm.name "
            "ppo"
        )
    if spaces.num_actions is None:
        return Factored(spaces.factors, spaces.starts, spaces.masked)
    return Categorical(spaces.num_actions, spaces.action_start, spaces.masked)


def _equal_mlp(config: Config, architecture: Architecture) -> Architecture:
    """One hidden layer, as wide as brings the number of weights nearest to what ``circuit`` trains for this policy."""
    circuit = configuration.Generator(source="circuit")
    values = config.model_copy(update={"generator": circuit, "qpu": Qpu()})
    total = Generator(values, architecture.layers).counts()["total"]
    o, a = architecture.num_inputs, architecture.num_outputs
    width = max(1, round((total - a) / (o + 1 + a)))
    return replace(architecture, hidden=(width,))


def roles(config: Agents, agents: Sequence[str], spaces: Sequence[Spaces], name: str) -> list[Role]:
    """The agents of every policy; raises UserError for agents whose spaces do not fit what they are to share."""
    if len(agents) > 1:
        _check_names(agents, name)
    if len(agents) == 1:
        usual = Agents().model_dump()
        if changed := {f"agents.{key}": value for key, value in config.model_dump().items() if value != usual[key]}:
            said = " and ".join(f"{key} = {value}" for key, value in changed.items())
            remedy = " ".join(f"--{key} {usual[key.removeprefix('agents.')]}" for key in changed)
            raise UserError(f"{name} has one agent, {said} needs several: set {remedy}")
        return [tuple(agents)]
    if config.sharing == "independent" or (config.sharing == "shared_circuit" and config.heads == "agent"):
        return [(agent,) for agent in agents]
    groups: dict[Spaces, list[str]] = {}
    for agent, own in zip(agents, spaces, strict=True):
        groups.setdefault(own, []).append(agent)
    if config.sharing == "shared" and len(groups) > 1:
        (a, *_), (b, *_), *_ = groups.values()
        (x, y, *_) = groups
        raise UserError(
            f"agents.sharing shared needs equal spaces: {name}'s {a} has {x.words}, {b} has {y.words}: set "
            "agents.sharing to independent or shared_circuit"
        )
    return [tuple(group) for group in groups.values()]


def _check_names(agents: Sequence[str], name: str) -> None:
    """Raise UserError unless the agents can be told apart by their names, as text."""
    for agent, count in Counter(agents).items():
        if not agent or count > 1:
            what = f"{count} of {name}'s agents are" if count > 1 else f"one of {name}'s agents is"
            raise UserError(f"{what} called {agent!r} as text: give every agent a name of its own in possible_agents")
