"""The algorithms: each a folder with a learner and an update, and an entry here; nothing else here asks for names."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distqtrl.algorithm.replay import Replay
from distqtrl.config.run import Config
from distqtrl.errors import lookup
from distqtrl.policy.distribution import Categorical
from distqtrl.training.evaluation import Greedy, greedy_episodes
from distqtrl.training.grpo.evaluation import greedy_answers
from distqtrl.training.grpo.learner import Grpo
from distqtrl.training.grpo.prompts import Prompts
from distqtrl.training.grpo.spec import specs
from distqtrl.training.grpo.update import update as grpo_update
from distqtrl.training.learner import Learner
from distqtrl.training.policy_gradient.learner import PPO, Reinforce
from distqtrl.training.policy_gradient.update import update as policy_gradient_update
from distqtrl.training.roles import Spec
from distqtrl.training.run import Run
from distqtrl.training.soft_actor_critic.discrete import DiscreteSoftActorCritic
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
    specs: Callable[[Config], Sequence[Any]] | None = None  # what is trained, where no environment says it
    environments: Callable[[Any, Sequence[int], int], Any] | None = None  # what stands in their place: policy, seed
    greedy: Callable[..., Greedy] = greedy_episodes
    of_choices: type[Learner] | None = None  # of a policy whose action is one of several, where that is another one

    def learner_of(self, spec: Any) -> type[Learner]:
        """The learner of a policy."""
        discrete = isinstance(spec, Spec) and isinstance(spec.head, Categorical)
        return self.of_choices if discrete and self.of_choices is not None else self.learner


ALGORITHMS = {
    "ppo": Algorithm(learner=PPO, update=policy_gradient_update),
    "reinforce": Algorithm(learner=Reinforce, update=policy_gradient_update),
    "sac": Algorithm(
        learner=SoftActorCritic,
        update=soft_actor_critic_update,
        several_agents=False,
        fixed_batch=True,
        replay=SoftActorCritic.replay,
        of_choices=DiscreteSoftActorCritic,
    ),
    "grpo": Algorithm(
        learner=Grpo, update=grpo_update, several_agents=False, specs=specs, environments=Prompts, greedy=greedy_answers
    ),
}


def chosen(config: Config) -> Algorithm:
    """The one of a configuration; raises UserError that names the nearest."""
    return lookup("algorithm.name", config.algorithm.name, ALGORITHMS)
