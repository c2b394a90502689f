"""One training run on this rank."""

from dataclasses import dataclass, field

from distqtrl.algorithm.replay import Replay
from distqtrl.allreduce.communicator import Communicator
from distqtrl.config.run import Config
from distqtrl.environment.vector import Environments
from distqtrl.policy.policy_file import Policy
from distqtrl.record.energy import Energy
from distqtrl.training.learner import Learner
from distqtrl.training.policies import Policies


@dataclass
class Counters:
    """Where a run stands; update is the next one to do. Steps and episodes are those of all ranks."""

    update: int = 0
    env_steps: int = 0
    validation_steps: int = 0
    episodes: int = 0
    train_s: float = 0.0
    cpu_s: float = 0.0  # mean over ranks of CPU seconds spent on anything but communication
    recent: list[float] = field(default_factory=list)  # mean returns of the last updates, train.smoothing of them
    acted: list[int] = field(default_factory=list)  # steps of every agent, where there are several
    longest_episode: int = 0  # in steps, of all ranks, episodes that have not ended included
    validation_return: float | None = None  # of the last update, where there was a validation
    metered: list[float] = field(default_factory=lambda: [0.0] * 3)  # joules, idle joules, seconds (``Energy.take``)


@dataclass
class Run:
    """One training run on this rank."""

    config: Config
    comm: Communicator
    policies: Policies
    environments: Environments
    replay: Replay | None  # of these environments, where the algorithm has one
    counters: Counters
    num_environments: int  # of all ranks
    restarted: list[int] = field(default_factory=list)  # environments whose state could not be replayed
    lost: list[int] = field(default_factory=list)  # ranks, by their numbers at the start
    setup_s: float = 0.0
    energy: Energy | None = None  # of all machines, while it trains
    best: list[Policy] = field(default_factory=list)  # the policies of the best validation, where they are kept
    told: bool = False  # that validations cut episodes, or that groups have equal rewards

    @property
    def learner(self) -> Learner:
        """The learner of this rank's first policy; with one agent there is no other."""
        return self.policies.learners[0]

    @property
    def done(self) -> float:
        """The part of the budget that is spent; 1 or more ends the run."""
        t, c = self.config.train, self.counters
        return max(c.env_steps / t.steps if t.steps else 0.0, c.update / t.updates if t.updates else 0.0)

    @property
    def finished(self) -> bool:
        return self.done >= 1

    @property
    def reached(self) -> bool:
        """Whether a validation, or the smoothed return of training, reached its target."""
        c = self.counters
        smoothed = sum(c.recent) / len(c.recent) if c.recent else None
        pairs = ((self.config.evaluate.target, c.validation_return), (self.config.train.target, smoothed))
        return any(target is not None and value is not None and value >= target for target, value in pairs)
