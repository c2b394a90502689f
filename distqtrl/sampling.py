"""From a replica and its environments to training samples, and to greedy returns."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from distqtrl import config as configuration
from distqtrl import seeding
from distqtrl.algorithm.advantage import advantages
from distqtrl.allreduce.communicator import Communicator, allgather_bytes
from distqtrl.config import Algorithm, Config, Qpu, UserError
from distqtrl.environment.rollout import Rollout, collect, play
from distqtrl.environment.vector import Environments, Spaces
from distqtrl.generator import Generator
from distqtrl.learner import STATISTICS, Learner, Samples, minibatches
from distqtrl.policy.distribution import Categorical, Gaussian, Head, SquashedGaussian
from distqtrl.policy.network import Architecture
from distqtrl.policy.policy_file import Policy
from distqtrl.replica import Replica

Totals = Callable[[dict[str, object]], dict[str, np.ndarray]]


def policy_for(config: Config, spaces: Spaces) -> tuple[Architecture, Head]:
    """The network and head that fit an environment; ``equal_mlp`` gets the hidden width that trains as many numbers."""
    head = _head(config, spaces)
    p = config.policy
    architecture = Architecture(spaces.num_observations, p.hidden, head.num_outputs, p.activation)
    if config.generator.source == "equal_mlp":
        architecture = _equal_mlp(config, architecture)
    return architecture, head


def _head(config: Config, spaces: Spaces) -> Head:
    sac = config.algorithm.name == "sac"
    if spaces.num_actions is None:
        return SquashedGaussian(spaces.low, spaces.high) if sac else Gaussian(spaces.low, spaces.high)
    if sac:
        raise UserError(
            f"algorithm.name = sac needs continuous actions, {config.environment.id} has {spaces.num_actions} discrete "
            "ones: use algorithm.name ppo"
        )
    return Categorical(spaces.num_actions, spaces.action_start)


def _equal_mlp(config: Config, architecture: Architecture) -> Architecture:
    """One hidden layer, as wide as brings the number of weights nearest to what ``circuit`` trains for this policy."""
    circuit = configuration.Generator(source="circuit")
    values = config.model_copy(update={"generator": circuit, "qpu": Qpu()})
    total = Generator(values, architecture.layers).counts()["total"]
    o, a = architecture.num_inputs, architecture.num_outputs
    width = max(1, round((total - a) / (o + 1 + a)))
    return replace(architecture, hidden=(width,))


def rollout(learner: Learner, environments: Environments, update: int, w_M: torch.Tensor) -> Rollout:
    """One update's rollout under these weights."""
    a, head, seed = learner.config.algorithm, learner.head, learner.config.train.seed
    outputs = learner.acting(w_M)
    std, dtype = learner.log_std.detach().exp().numpy(), learner.log_std.detach().numpy().dtype
    streams = [seeding.stream(seed, "action", index, update) for index in environments.indices]

    def noise(steps: int) -> np.ndarray:
        return np.stack([head.noise(stream, steps) for stream in streams], axis=1)

    def act(obs_BO: np.ndarray, noise_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        normal_BO = learner.normalizer.apply(obs_BO).astype(dtype, copy=False)
        actions = head.sample(outputs(obs_BO, normal_BO), noise_B.astype(dtype, copy=False), std)
        return actions, head.to_environment(actions)

    with learner.profile("rollout"):
        return collect(environments, act, noise, a.rollout_steps if a.rollout == "steps" else None)


def samples(learner: Learner, rollout: Rollout, w_M: torch.Tensor) -> Samples:
    """The valid steps as samples of the policy with these weights; advantages are not yet normalised."""
    with learner.profile("loss"), torch.no_grad():
        obs_TBO = learner.observed(rollout.obs_TBO)
        values_TB, next_values_TB = _values(learner, rollout, obs_TBO)
        a = learner.config.algorithm
        lam = a.gae_lambda if a.name == "ppo" else 1.0
        ends = (rollout.terminated_TB, rollout.truncated_TB)
        adv_TB = torch.from_numpy(advantages(rollout.rewards_TB, values_TB, next_values_TB, *ends, a.gamma, lam))
        valid_TB = torch.from_numpy(rollout.valid_TB)
        raw_NO = torch.from_numpy(rollout.obs_TBO)[valid_TB]
        obs_NO, actions = obs_TBO[valid_TB], torch.from_numpy(rollout.actions)[valid_TB]
        outputs = learner.outputs(w_M, raw_NO, obs_NO)
        log_prob_N = learner.head.log_prob(outputs, actions, learner.log_std)
        returns_N = (adv_TB + torch.from_numpy(values_TB))[valid_TB].to(learner.dtype)
        entropy_N = learner.head.entropy(outputs, learner.log_std)
        return Samples(raw_NO, obs_NO, actions, log_prob_N, adv_TB[valid_TB], returns_N, entropy_N)


def update(learner: Learner, environments: Environments, number: int, totals: Totals) -> dict[str, float | None]:
    """One update, the number-th: a rollout and the optimizer steps on it; returns metrics.

    ``totals`` sums named parts over the ranks, together with what the loop itself asks for.
    """
    config = learner.config
    w_M = learner.acting_weights(number)
    found = rollout(learner, environments, number, w_M)
    batch = samples(learner, found, w_M)
    if config.algorithm.normalize_advantages and config.algorithm.normalize_over == "episode":
        normalise_episodes(batch, found, config.algorithm.normalize_epsilon)
    epochs = list(minibatches(config, environments.indices, found.valid_TB, number))
    adv_N, normalizer = batch.adv_N.numpy(), learner.normalizer
    normalizes = config.policy.normalize_observations
    total = totals(
        {
            "counts": [len(part) for part in epochs[0]],
            "steps": [found.rewards_TB.size],
            "adv": [adv_N.sum(), (adv_N**2).sum()],
            "entropy": [float(batch.entropy_N.double().sum())],
            "obs": normalizer.sums(found.obs_TBO[found.valid_TB]) if normalizes else [],
        }
    )
    _normalise(batch, total, config.algorithm)
    sums, steps, norm, most = np.zeros(len(STATISTICS)), 0, 0.0, config.algorithm.target_kl
    for index, count in ((index, n) for epoch in epochs for index, n in zip(epoch, total["counts"], strict=True)):
        if not count:
            continue  # episodes were too short for so many minibatches
        part = batch if len(epochs[0]) == 1 else batch.at(index)
        statistics, norm = learner.step(part, float(count), f"update {number}, optimizer step {steps}")
        sums, steps = sums + statistics, steps + 1
        if most is not None and statistics[STATISTICS.index("approx_kl")] > most:
            break
    if normalizes:
        normalizer.merge(float(total["counts"].sum()), total["obs"])
    acting = {"acting_entropy": float(total["entropy"][0] / total["counts"].sum()), "gradient_norm": norm}
    return {**{name: float(x) for name, x in zip(STATISTICS, sums / steps, strict=True)}, **acting}


def _normalise(samples: Samples, total: dict[str, np.ndarray], a: Algorithm) -> None:
    """Advantages to zero mean and unit deviation over all ranks' samples, in the networks' precision."""
    if a.normalize_advantages and a.normalize_over == "update":
        count, (adv_sum, squares) = total["counts"].sum(), total["adv"]
        deviation = max(squares / count - (adv_sum / count) ** 2, 0.0) ** 0.5
        samples.adv_N = (samples.adv_N - adv_sum / count) / (deviation + a.normalize_epsilon)
    samples.adv_N = samples.adv_N.to(samples.returns_N.dtype)


def normalise_episodes(samples: Samples, rollout: Rollout, epsilon: float) -> None:
    """Advantages to zero mean and unit deviation in every episode by itself: (A - mean) / (std + epsilon).

    The deviation divides by n - 1, as the code of arXiv 2407.06103 does; an episode of one step gets 0.
    """
    adv_TB = np.zeros(rollout.valid_TB.shape)
    adv_TB[rollout.valid_TB] = samples.adv_N.numpy()
    for b, valid_T in enumerate(rollout.valid_TB.T):
        adv_T = adv_TB[valid_T, b]
        deviation = adv_T.std(ddof=1) if len(adv_T) > 1 else 0.0
        adv_TB[valid_T, b] = (adv_T - adv_T.mean()) / (deviation + epsilon)
    samples.adv_N = torch.from_numpy(adv_TB[rollout.valid_TB])


def _values(learner: Learner, rollout: Rollout, obs_TBO: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """V of the observations and of those that followed; zeros without a baseline."""
    if learner.value is None:
        return np.zeros_like(rollout.rewards_TB), np.zeros_like(rollout.rewards_TB)
    values_TB = learner.values(obs_TBO).double().numpy()
    next_values_TB = np.roll(values_TB, -1, axis=0)
    cut_TB = rollout.truncated_TB.copy()  # what followed is not the next row
    cut_TB[-1] = True
    next_values_TB[cut_TB] = learner.values(learner.observed(rollout.next_obs_TBO[cut_TB])).double().numpy()
    return values_TB, next_values_TB


def policy(learner: Replica, env_steps: int) -> Policy:
    """The policy of the present parameters, as it is deployed."""
    config = learner.config
    origin = {"source": config.generator.source, "env_steps": env_steps, "seed": config.train.seed}
    environment = config.environment.model_dump(mode="json")
    trained = None if learner.quantizer is None else learner.quantizer.trained()
    return Policy(
        learner.architecture, learner.head, learner.deployed_weights(), learner.normalizer, environment, origin, trained
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
