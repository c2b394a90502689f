"""The algorithms: each a folder with a learner and an update, and an entry here. Nobody else asks for their names."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distqtrl.algorithm.replay import Replay
from distqtrl.config.run import Config
from distqtrl.errors import lookup
from distqtrl.training.learner import Learner
from distqtrl.training.policy_gradient.learner import PPO, Reinforce
from distqtrl.training.policy_gradient.update import update as policy_gradient_update
from distqtrl.training.roles import Spec
from distqtrl.training.run import Run
from distqtrl.training.soft_actor_critic.learner import SoftActorCritic
from distqtrl.training.soft_actor_critic.update import update as soft_actor_critic_update
from distqtrl.training.sums import RolloutSums


@dataclass(frozen=True)
class Algorithm:
    """What training asks of an algorithm."""

    learner: type[Learner]  # with its heads, memory and numbers of steps
    update: Callable[[Run, Sequence[signal.Signals]], tuple[RolloutSums, dict[str, Any]]]
    several_agents: bool = True
    fixed_batch: bool = False  # whether a step's batch is as large on any number of ranks
    replay: Callable[[Config, Spec, int, int], Replay] | None = None  # config, policy, environments here and in all


ALGORITHMS = {
    "ppo": Algorithm(learner=PPO, update=policy_gradient_update),
    "reinforce": Algorithm(learner=Reinforce, update=policy_gradient_update),
    "sac": Algorithm(
        learner=SoftActorCritic,
        update=soft_actor_critic_update,
        several_agents=False,
        fixed_batch=True,
        replay=SoftActorCritic.replay,
    ),
}


def chosen(config: Config) -> Algorithm:
    """The one of a configuration; raises UserError that names the nearest."""
    return lookup("algorithm.name", config.algorithm.name, ALGORITHMS)
