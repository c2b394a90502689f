"""What a run is made of, from its configuration and one look at its environment: read by ``build`` and by describe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from distqtrl.config.run import Config
from distqtrl.environment.spaces import Spaces
from distqtrl.environment.vector import Environments, Role
from distqtrl.environment.world import make
from distqtrl.errors import UserError, lookup
from distqtrl.generator.controls import SOURCES
from distqtrl.generator.generator import circuit_total
from distqtrl.policy import policy_file
from distqtrl.policy.network import Architecture
from distqtrl.training import algorithms, demand
from distqtrl.training.algorithms import Algorithm
from distqtrl.training.network_learner import NetworkLearner
from distqtrl.training.roles import Spec, roles


@dataclass(frozen=True)
class Plan:
    """The environment's agents, and what each policy is."""

    agents: tuple[str, ...]
    specs: tuple[Spec, ...]
    algorithm: Algorithm
    central: bool  # whether critics see the environment's state

    @property
    def roles(self) -> list[Role]:
        """The agents of every policy."""
        return [spec.agents for spec in self.specs]


def plan(config: Config) -> Plan:
    """The plan of a run; raises UserError for a configuration that cannot run on this machine."""
    algorithm = algorithms.chosen(config)
    lookup("generator.source", config.generator.source, SOURCES)
    if algorithm.specs is not None:
        decoders = tuple(algorithm.specs(config))
        for each in decoders:
            demand.check_generated(config, each, algorithm.learner.needs(config, each))
        return Plan(agents=decoders[0].agents, specs=decoders, algorithm=algorithm, central=False)
    world = make(config.environment)
    agents, found = world.agents, world.spaces
    world.close()
    played = roles(config.agents, agents, found, config.environment.id)
    _check_policies(config, algorithm, agents, len(played))
    by_agent = dict(zip(agents, found, strict=True))
    specs = [spec(config, algorithm, role, by_agent[role[0]]) for role in played]
    for each in specs:
        policy_file.check(each.head, config.environment.id)
        demand.check(config, each, algorithm.learner_of(each).needs(config, each))
    central = config.agents.critic == "centralised"
    if central:
        width = _num_states(config, played)
        specs = [replace(each, num_states=width + _num_shared(each.agents)) for each in specs]
    return Plan(agents=agents, specs=tuple(specs), algorithm=algorithm, central=central)


def spec(config: Config, algorithm: Algorithm, role: Role, spaces: Spaces) -> Spec:
    """The policy of a role, whose agents have these spaces."""
    learner, p = cast(type[NetworkLearner], algorithm.learner), config.policy
    head = learner.head_for(config, spaces)
    num_inputs = spaces.num_observations + _num_shared(role)
    if p.convolutions and spaces.image and _num_shared(role):
        raise UserError(
            "policy.convolutions read an image alone, and behind it a shared policy sees which agent it plays: set "
            "agents.sharing to independent or shared_circuit"
        )
    image = spaces.image if p.convolutions else ()
    if image and image[1] < min(image[2:]):
        rows, columns, colours = image[1:]
        raise UserError(
            f"policy.convolutions read rows, columns, colours; {config.environment.id} observes {rows} x {columns} x "
            f"{colours}, whose shortest side is the first, as where colours come first: let it move its axes, such as "
            "numpy.moveaxis(image, 0, -1)"
        )
    architecture = Architecture(num_inputs, p.hidden, head.num_outputs, p.activation, image, p.convolutions)
    if config.generator.source == "equal_mlp":
        architecture = _equal_mlp(config, architecture)
    return Spec(agents=role, architecture=architecture, head=head)


def _num_shared(role: Role) -> int:
    """How many numbers tell a policy which of several agents it plays."""
    return len(role) if len(role) > 1 else 0


def _equal_mlp(config: Config, architecture: Architecture) -> Architecture:
    """One hidden layer, as wide as brings the number of weights nearest to what ``circuit`` trains for this policy."""
    total = config.generator.numbers or circuit_total(config, architecture.layers)
    o, a = architecture.num_inputs, architecture.num_outputs
    width = max(1, round((total - a) / (o + 1 + a)))
    return replace(architecture, hidden=(width,), image=(), convolutions=())


def _num_states(config: Config, played: Sequence[Role]) -> int:
    """How wide the environment's state is."""
    one = Environments(config.environment, [0], seed=0, purpose="evaluation", roles=played, central=True)
    assert one.states_ES is not None
    one.close()
    return one.states_ES.shape[1]


def _check_policies(config: Config, algorithm: Algorithm, agents: Sequence[str], num: int) -> None:
    """Raise UserError for what is made for one agent, or one policy, alone."""
    if len(agents) > 1 and not algorithm.several_agents:
        raise UserError(
            f"algorithm.name {config.algorithm.name} trains one agent, {config.environment.id} has {len(agents)}: use "
            "ppo or reinforce"
        )
    if config.adapter.base is not None and num > 1:
        raise UserError(
            f"adapter.base adapts one policy, agents.sharing {config.agents.sharing} makes {num}: use shared"
        )
