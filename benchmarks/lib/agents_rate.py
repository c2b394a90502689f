"""Rollouts of several agents without learning, timed: ours, and a plain loop's."""

import time
from collections.abc import Callable

import numpy as np
import torch

from distqtrl.allreduce.communicator import Serial
from distqtrl.config.run import Config
from distqtrl.training.build import prepare
from distqtrl.training.policy_gradient.samples import rollout
from lib.agents import Numbers


def timed(action: Callable[[], None], steps: int) -> Callable[[], Numbers | str]:
    """Steps per second of what makes so many, after a first time that does not count."""
    action()

    def measure() -> Numbers | str:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        action()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        return {"steps_per_s": steps / wall_s, "steps_per_cpu_s": steps / cpu_s}

    return measure


class Ours:
    """One update's rollout by a policy whose weights the circuit makes anew, with the centralised critic's states."""

    def __init__(self, cfg: Config) -> None:
        self.run, self.number = prepare(cfg, Serial()), 0

    def __call__(self) -> None:
        self.run.policies.generated.forget()
        acting = [learner.acting_weights(self.number) for learner in self.run.policies.learners]
        rollout(self.run.config, self.run.environments, self.number, self.run.policies.players(acting))
        self.number += 1


class Plain:
    """What one writes without a library: the copies one by one, and for each a forward pass for its agents."""

    def __init__(self, copies: int, steps: int) -> None:
        from mpe2 import simple_spread_v3

        self.envs, self.steps = [simple_spread_v3.parallel_env(max_cycles=25) for _ in range(copies)], steps
        self.observed = [env.reset(seed=number)[0] for number, env in enumerate(self.envs)]
        layers = [torch.nn.Linear(18 + 3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()]
        self.policy, self.which = torch.nn.Sequential(*layers, torch.nn.Linear(64, 5)), torch.eye(3)

    @torch.no_grad()
    def __call__(self) -> None:
        samples = []
        for _ in range(self.steps):
            for b, env in enumerate(self.envs):
                obs = torch.from_numpy(np.stack(list(self.observed[b].values()))).float()
                obs = torch.cat([obs, self.which], dim=1)
                actions = torch.distributions.Categorical(logits=self.policy(obs)).sample()
                self.observed[b], rewards, *_ = env.step(dict(zip(env.agents, actions.tolist(), strict=True)))
                samples.append((obs, actions, list(rewards.values())))
                if not env.agents:
                    self.observed[b], _ = env.reset()
