"""Who plays whom, and with what: the agents of every policy, and the network and head that fit what they see and do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distqtrl.config.frozen import Adapter
from distqtrl.config.stages import Agents
from distqtrl.environment.spaces import Spaces
from distqtrl.environment.vector import Role
from distqtrl.errors import UserError
from distqtrl.generator.factors import Layers
from distqtrl.policy import adapter
from distqtrl.policy.distribution import Head
from distqtrl.policy.network import Architecture


@dataclass(frozen=True)
class Spec:
    """One policy: the agents that it plays, its network and head, and the width of a centralised critic's state."""

    agents: Role
    architecture: Architecture
    head: Head
    num_states: int = 0  # 0 = its critic sees what it sees

    @property
    def num_critic_inputs(self) -> int:
        """How many numbers a value network sees."""
        return self.num_states or self.architecture.num_inputs

    @property
    def num_weights(self) -> int:
        """How many leave with the policy."""
        return self.architecture.num_weights

    @property
    def num_statistics(self) -> int:
        """How many the normaliser of observations has."""
        return 2 * self.architecture.num_inputs

    @property
    def words(self) -> str:
        """Network and head, for people."""
        a = self.architecture
        return "-".join(map(str, a.widths)) + f" {a.activation}, {type(self.head).__name__.lower()}"

    def layers(self, config: Adapter) -> Layers:
        """(number of weights, fan-in) of what is generated for it."""
        return self.architecture.layers if config.base is None else adapter.layers(self.architecture, config.rank)


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
    for agent, one in zip(agents, spaces, strict=True):
        groups.setdefault(one, []).append(agent)
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
