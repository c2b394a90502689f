"""From a replica and its environments to training samples, and to greedy returns."""

from collections.abc import Callable

import numpy as np
import torch

from distqtrl import seeding
from distqtrl.algorithm.advantage import advantages
from distqtrl.allreduce.communicator import Communicator, allgather_bytes
from distqtrl.config import Config
from distqtrl.environment.rollout import Rollout, collect, play
from distqtrl.environment.vector import Environments, Spaces
from distqtrl.learner import Learner, Samples
from distqtrl.policy import network
from distqtrl.policy.distribution import Categorical, Gaussian, Head
from distqtrl.policy.network import Architecture
from distqtrl.policy.policy_file import Policy


def policy_for(config: Config, spaces: Spaces) -> tuple[Architecture, Head]:
    """The network and head that fit an environment."""
    head: Head = (
        Gaussian(spaces.low, spaces.high)
        if spaces.num_actions is None
        else Categorical(spaces.num_actions, spaces.action_start)
    )
    p = config.policy
    return Architecture(spaces.num_observations, p.hidden, head.num_outputs, p.activation), head


def rollout(learner: Learner, environments: Environments, update: int) -> Rollout:
    """One update's rollout under the weights of the present parameters."""
    a, head, seed = learner.config.algorithm, learner.head, learner.config.train.seed
    layers, log_std = network.unpack(learner.architecture, learner.weights().detach()), learner.log_std.detach()
    streams = [seeding.stream(seed, "action", index, update) for index in environments.indices]

    def noise(steps: int) -> np.ndarray:
        return np.stack([head.noise(stream, steps) for stream in streams], axis=1)

    def act(obs_BO: np.ndarray, noise_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = network.outputs(learner.architecture, layers, learner.observed(obs_BO))
        actions = head.sample(outputs, torch.from_numpy(noise_B).to(learner.dtype), log_std).numpy()
        return actions, head.to_environment(actions)

    with learner.profile("rollout"), torch.inference_mode():
        return collect(environments, act, noise, a.rollout_steps if a.rollout == "steps" else None)


def samples(learner: Learner, rollout: Rollout) -> Samples:
    """The valid steps as samples; advantages are not yet normalised."""
    with learner.profile("loss"), torch.no_grad():
        obs_TBO = learner.observed(rollout.obs_TBO)
        values_TB, next_values_TB = _values(learner, rollout, obs_TBO)
        a = learner.config.algorithm
        lam = a.gae_lambda if a.name == "ppo" else 1.0
        ends = (rollout.terminated_TB, rollout.truncated_TB)
        adv_TB = torch.from_numpy(advantages(rollout.rewards_TB, values_TB, next_values_TB, *ends, a.gamma, lam))
        valid_TB = torch.from_numpy(rollout.valid_TB)
        obs_NO, actions = obs_TBO[valid_TB], torch.from_numpy(rollout.actions)[valid_TB]
        layers = network.unpack(learner.architecture, learner.weights().detach())
        outputs = network.outputs(learner.architecture, layers, obs_NO)
        log_prob_N = learner.head.log_prob(outputs, actions, learner.log_std)
        returns_N = (adv_TB + torch.from_numpy(values_TB))[valid_TB].to(learner.dtype)
        return Samples(obs_NO, actions, log_prob_N, adv_TB[valid_TB], returns_N)


def _values(learner: Learner, rollout: Rollout, obs_TBO: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """V of the observations and of those that followed; zeros without a baseline."""
    if not learner.config.algorithm.baseline:
        return np.zeros_like(rollout.rewards_TB), np.zeros_like(rollout.rewards_TB)
    values_TB = learner.values(obs_TBO).double().numpy()
    next_values_TB = np.roll(values_TB, -1, axis=0)
    cut_TB = rollout.truncated_TB.copy()  # what followed is not the next row
    cut_TB[-1] = True
    next_values_TB[cut_TB] = learner.values(learner.observed(rollout.next_obs_TBO[cut_TB])).double().numpy()
    return values_TB, next_values_TB


def policy(learner: Learner, env_steps: int) -> Policy:
    """The policy of the present parameters, as it is deployed."""
    config = learner.config
    origin = {"source": config.generator.source, "env_steps": env_steps, "seed": config.train.seed}
    environment = config.environment.model_dump(mode="json")
    return Policy(
        learner.architecture, learner.head, learner.deployed_weights(), learner.normalizer, environment, origin
    )


def greedy_episodes(
    config: Config, comm: Communicator, act: Callable[[np.ndarray], np.ndarray], purpose: str, episode: int, num: int
) -> tuple[np.ndarray, int]:
    """Returns of num greedy episodes in environments of their own, and their steps; spread over the ranks."""
    indices, played = range(comm.rank, num, comm.size), np.zeros((2, 0))
    if indices:
        environments = Environments(config.environment, indices, 0, purpose, episode)
        played = np.stack(play(environments, act))
        environments.close()
    gathered = np.empty((2, num))
    for rank, part in enumerate(allgather_bytes(comm, played.tobytes())):
        gathered[:, rank :: comm.size] = np.frombuffer(part).reshape(2, -1)
    return gathered[0], int(gathered[1].sum())
