"""The policies of a run: who plays which agents, who learns which policy, and what acts in a rollout.

With ``agents.placement spread`` the ranks fall into blocks, and every block learns the policies (and hosts the QPUs) of
some agents from its own environments: gradients are reduced within the block, and the weights of all are exchanged once
per update.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from distqtrl.allreduce.communicator import Communicator
from distqtrl.config.run import Config
from distqtrl.environment.vector import Role
from distqtrl.policy.policy_file import Policy
from distqtrl.record.profile import Profile
from distqtrl.training.learner import Learner
from distqtrl.training.network_learner import NetworkLearner
from distqtrl.training.placement import Acting, exchanged, packed, unpacked
from distqtrl.training.player import Player, player, remote_player
from distqtrl.training.roles import Spec
from distqtrl.training.weights import Generated


@dataclass
class Policies:
    """``specs``: of every policy of the run; ``local_roles``: the numbers of those that this rank learns."""

    config: Config
    comm: Communicator  # of all ranks
    profile: Profile
    specs: Sequence[Spec]
    local_roles: Sequence[int]
    learners: Sequence[Learner]

    @property
    def roles(self) -> list[Role]:
        """The agents of every policy."""
        return [spec.agents for spec in self.specs]

    @property
    def names(self) -> list[str]:
        """The agents' own names, or numbers of groups (in "groups", where an agent is called like one)."""
        agents = {agent for role in self.roles for agent in role}
        group = "group" if not any(re.fullmatch(r"group\d+", agent) for agent in agents) else "group_of_agents"
        return [role[0] if len(role) == 1 else f"{group}{number}" for number, role in enumerate(self.roles)]

    @property
    def generated(self) -> Generated:
        """The weights of this rank's policies."""
        return self.learners[0].generated

    @property
    def num_circuits(self) -> int:
        """How many circuits run for one evaluation of this rank's policies."""
        return len(self.local_roles) if self.config.agents.sharing == "independent" else 1

    @property
    def spread(self) -> bool:
        """Whether other ranks learn policies that this one does not."""
        return len(self.local_roles) < len(self.specs)

    def players(self, acting: Sequence[torch.Tensor]) -> list[Player]:
        """What acts for every role; acting: the weights of this rank's policies."""
        by_role = {k: player(r, w_M) for k, r, w_M in zip(self.local_roles, self._networks, acting, strict=True)}
        for role, found in self._elsewhere(acting).items():
            by_role[role] = remote_player(self.specs[role], found, acting[0].numpy().dtype)
        return [by_role[role] for role in range(len(self.specs))]

    def deployed(self, env_steps: int) -> list[Policy]:
        """All policies as they are deployed, on every rank."""
        several = len(self.specs[0].agents) > 1 or len(self.specs) > 1
        agents = self.roles if several else [()]
        weights = [learner.deployed_weights() for learner in self.learners]
        by_role = {
            role: learner.deployed(env_steps, w_M, agents[role])
            for role, learner, w_M in zip(self.local_roles, self._networks, weights, strict=True)
        }
        like = by_role[self.local_roles[0]]
        for role, found in self._elsewhere(weights).items():
            by_role[role] = Policy(
                architecture=self.specs[role].architecture,
                head=self.specs[role].head,
                w_M=torch.from_numpy(found.w_M),
                normalizer=found.normalizer,
                environment=like.environment,
                origin=like.origin,
                agents=agents[role],
            )
        return [by_role[role] for role in range(len(self.specs))]

    @property
    def _networks(self) -> Sequence[NetworkLearner]:
        """The learners of an algorithm that trains networks."""
        return cast(Sequence[NetworkLearner], self.learners)

    def _elsewhere(self, weights: Sequence[torch.Tensor]) -> dict[int, Acting]:
        """The policies that only other ranks learn, by role; weights: of this rank's."""
        if not self.spread:
            return {}
        vectors = self._exchanged([packed(r, w_M) for r, w_M in zip(self._networks, weights, strict=True)])
        foreign = [role for role in range(len(self.specs)) if role not in self.local_roles]
        return {role: unpacked(self.specs[role], vectors[role]) for role in foreign}

    def gathered(self, rows_K: np.ndarray) -> np.ndarray:
        """Rows of this rank's policies -> rows of all policies."""
        return np.array(self._exchanged(list(rows_K))) if self.spread else rows_K

    def _exchanged(self, vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
        return exchanged(self.comm, vectors, local_roles=self.local_roles, num=len(self.specs))

    def fingerprint(self) -> bytes:
        """The bytes of every parameter on this rank, in order."""
        return b"".join(learner.fingerprint() for learner in self.learners)
