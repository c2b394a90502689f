"""The policies of a run: who plays which agents, who learns which policy, and what acts in a rollout.

With ``agents.placement spread`` the ranks fall into blocks, and every block holds the
policies (and hosts the QPUs) of some agents: it learns those from its own environments, gradients are reduced within
the block, and the weights of all are exchanged once per update.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.config.run import Config
from distqtrl.environment.vector import Role
from distqtrl.policy import network
from distqtrl.policy.distribution import Head, allowed, masks, read
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.policy.policy_file import Policy
from distqtrl.record.profile import Profile
from distqtrl.training.learner import Learner
from distqtrl.training.placement import Unpacked, _packed, _unpacked
from distqtrl.training.policy_gradient.learner import PolicyGradient
from distqtrl.training.weights import Generated


@dataclass
class Player:
    """What acts for one role in a rollout: weights and all else that does not change meanwhile."""

    head: Head
    outputs: Callable[[np.ndarray, np.ndarray], np.ndarray]  # raw and normalised observations -> (B, A)
    normalizer: Normalizer
    std_A: np.ndarray

    def act(self, obs_BO: np.ndarray, noise_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The policy's actions, and the environment's."""
        dtype, seen_BO = self.std_A.dtype, read(self.head, obs_BO)
        normal_BO = self.normalizer.apply(seen_BO).astype(dtype, copy=False)
        outputs = self.outputs(seen_BO, normal_BO)
        if self.head.masked:
            outputs = allowed(outputs, masks(self.head, obs_BO))
        actions = self.head.sample(outputs, noise_B.astype(dtype, copy=False), self.std_A)
        return actions, self.head.to_environment(actions)


@dataclass
class Policies:
    """``architectures``: network and head of every role's policy; ``local_roles``: those that this rank learns."""

    config: Config
    comm: Communicator  # of all ranks
    profile: Profile
    roles: list[Role]
    architectures: list[tuple[Architecture, Head]]
    local_roles: list[int]
    learners: Sequence[Learner]

    @property
    def names(self) -> list[str]:
        """Of the policies: the agents' own, or numbers of groups (in "groups", where an agent is called like one)."""
        agents = {agent for role in self.roles for agent in role}
        group = "group" if not any(re.fullmatch(r"group\d+", agent) for agent in agents) else "group_of_agents"
        return [role[0] if len(role) == 1 else f"{group}{number}" for number, role in enumerate(self.roles)]

    @property
    def policy_gradient(self) -> list[PolicyGradient]:
        """Its learners, where the algorithm is PPO or REINFORCE."""
        return [learner for learner in self.learners if isinstance(learner, PolicyGradient)]

    @property
    def generated(self) -> Generated:
        """The weights of this rank's policies."""
        return self.learners[0].generated

    @property
    def num_circuits(self) -> int:
        """That run for one evaluation of this rank's policies."""
        return len(self.local_roles) if self.config.agents.sharing == "independent" else 1

    @property
    def spread(self) -> bool:
        """Whether other ranks hold policies that this one does not."""
        return len(self.local_roles) < len(self.roles)

    def players(self, acting: Sequence[torch.Tensor]) -> list[Player]:
        """What acts for every role; acting: the weights of this rank's policies."""
        by_role = {k: player(r, w_M) for k, r, w_M in zip(self.local_roles, self.learners, acting, strict=True)}
        for role, (w_M, std_A, normalizer) in self._elsewhere(acting).items():
            architecture, head = self.architectures[role]
            dtype = acting[0].numpy().dtype
            outputs = network.acting(architecture, torch.from_numpy(w_M.astype(dtype)))
            by_role[role] = Player(head, partial(_of_normalised, outputs), normalizer, std_A.astype(dtype))
        return [by_role[role] for role in range(len(self.roles))]

    def deployed(self, env_steps: int) -> list[Policy]:
        """All policies as they are deployed, on every rank."""
        several = len(self.roles[0]) > 1 or len(self.roles) > 1
        agents = self.roles if several else [()]
        deployed = [learner.deployed_weights() for learner in self.learners]
        by_role = {
            role: policy(learner, env_steps, w_M, agents[role])
            for role, learner, w_M in zip(self.local_roles, self.learners, deployed, strict=True)
        }
        like = by_role[self.local_roles[0]]
        for role, (w_M, _, normalizer) in self._elsewhere(deployed).items():
            place = *self.architectures[role], torch.from_numpy(w_M), normalizer
            by_role[role] = Policy(*place, like.environment, like.origin, None, agents[role])
        return [by_role[role] for role in range(len(self.roles))]

    def _elsewhere(self, weights: Sequence[torch.Tensor]) -> dict[int, Unpacked]:
        """Weights, deviations, normaliser of the policies that only other ranks hold; weights: of this rank's own."""
        if not self.spread:
            return {}
        packed = self._exchanged([_packed(r, w_M) for r, w_M in zip(self.learners, weights, strict=True)])
        foreign = [role for role in range(len(self.roles)) if role not in self.local_roles]
        return {role: _unpacked(*self.architectures[role], packed[role]) for role in foreign}

    def gathered(self, rows_K: np.ndarray) -> np.ndarray:
        """Rows of this rank's policies -> rows of all policies."""
        return np.array(self._exchanged(list(rows_K))) if self.spread else rows_K

    def _exchanged(self, own: Sequence[np.ndarray]) -> list[np.ndarray]:
        """A vector of every role, from the first rank that holds it."""
        mine = np.zeros(len(self.roles), dtype=np.int64)
        mine[self.local_roles] = [len(x) for x in own]
        sizes = self.comm.allgather(mine)
        packed = allgather_bytes(self.comm, np.concatenate([np.asarray(x, dtype=np.float64) for x in own]).tobytes())
        out: list[np.ndarray] = []
        for role in range(len(self.roles)):
            rank = int(np.flatnonzero(sizes[:, role])[0])
            begin = int(sizes[rank, :role].sum())
            out.append(np.frombuffer(packed[rank])[begin : begin + int(sizes[rank, role])])
        return out

    def fingerprint(self) -> bytes:
        """The bytes of every parameter on this rank, in order."""
        return b"".join(learner.fingerprint() for learner in self.learners)


def _of_normalised(outputs: Callable[[np.ndarray], np.ndarray], raw_BO: np.ndarray, obs_BO: np.ndarray) -> np.ndarray:
    return outputs(obs_BO)


def player(learner: Learner, w_M: torch.Tensor) -> Player:
    """What acts with these weights."""
    std_A = learner.log_std.detach().exp().numpy() if isinstance(learner, PolicyGradient) else np.zeros(0)
    return Player(learner.head, learner.acting(w_M), learner.normalizer, std_A)


def policy(learner: Learner, env_steps: int, w_M: torch.Tensor, agents: Role = ()) -> Policy:
    """A learner's policy with these weights; agents: those that it plays, where there are several."""
    config = learner.config
    origin = {"source": config.generator.source, "env_steps": env_steps, "seed": config.train.seed}
    environment = config.environment.model_dump(mode="json")
    trained = None if learner.quantizer is None else learner.quantizer.trained()
    return Policy(learner.architecture, learner.head, w_M, learner.normalizer, environment, origin, trained, agents)
