"""An update of GRPO: completions of every prompt, what all ranks sum of them, and optimizer steps on their tokens."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from distqtrl import seeding
from distqtrl.algorithm import grpo, noise_scale
from distqtrl.language import sampler
from distqtrl.language.adapted import texts
from distqtrl.training import step
from distqtrl.training.gradient import Array
from distqtrl.training.grpo.learner import STATISTICS, Grpo, Samples
from distqtrl.training.grpo.prompts import Prompts
from distqtrl.training.run import Run
from distqtrl.training.sums import RolloutSums, rollout_sums, summed


@dataclass
class Sums:
    """What ranks sum of a rollout, in one reduction."""

    rollout: RolloutSums
    counts: Array  # tokens of every minibatch
    prompts: Array  # how many
    equal: Array  # how many groups have equal rewards, so that nothing is learned from them
    ended: Array  # completions that said where they end
    entropy: Array  # sum over tokens of -log pi of the policy that acted


def update(run: Run, pending: Sequence[signal.Signals]) -> tuple[RolloutSums, dict[str, Any]]:
    """One update; returns what all ranks summed of the rollout, and metrics. pending: signals that came meanwhile."""
    config, number = run.config, run.counters.update
    a, learner, prompts = config.algorithm, cast(Grpo, run.learner), cast(Prompts, run.environments)

    # the acting policy completes every prompt, group by group
    with learner.profile("rollout"):
        samples, rewards_NJ = _rollout(learner, prompts, number)
    length_N = samples.completions.length_N
    groups = _dealt(prompts.indices, a.minibatches)
    rows = [[g * config.language.group + j for g in part for j in range(config.language.group)] for part in groups]

    # one reduction over the ranks
    local = Sums(
        rollout=rollout_sums(run, np.array([float(len(length_N))]), len(length_N), pending),
        counts=np.array([float(length_N[part].sum()) for part in rows]),
        prompts=np.array([float(len(part)) for part in groups]),
        equal=np.array(float((rewards_NJ == rewards_NJ[:, :1]).all(1).sum())),
        ended=np.array(float(samples.completions.ended_N.sum())),
        entropy=np.array(-float(samples.completions.log_prob_NT.double().sum())),
    )
    total = summed(run, local, f"rollout of update {number}")

    # epochs of optimizer steps
    statistics, norm, num_steps = np.zeros(len(STATISTICS)), 0.0, 0
    for _ in range(a.epochs):
        for part, count in enumerate(total.counts.tolist()):
            step.zero([learner])
            loss = learner.loss(samples.at(rows[part]), count)
            if not num_steps:  # whose gradient is of the policy that acted
                loss.local_batch, loss.global_batch = len(groups[part]), float(total.prompts[part])
            step.backward([learner], [loss])
            (reduced,) = step.reduce([learner], [loss], f"update {number}, optimizer step {num_steps}")
            (norm,) = step.step([learner], [reduced])
            statistics, num_steps = statistics + reduced.sums, num_steps + 1
    tokens, num = float(total.counts.sum()), float(total.rollout.episodes)
    metrics = {
        **dict(zip(STATISTICS, (statistics / num_steps).tolist(), strict=True)),
        "gradient_norm": norm,
        **noise_scale.facts(learner.noise_scale.take()[np.newaxis]),
        "acting_entropy": float(total.entropy) / tokens,
        "equal_groups": float(total.equal) / float(total.prompts.sum()),
        "ended": float(total.ended) / num,
        "tokens": int(tokens),
    }
    return total.rollout, metrics


def _rollout(learner: Grpo, prompts: Prompts, update: int) -> tuple[Samples, torch.Tensor]:
    """A group of completions of every prompt as samples, and their rewards (prompts, J)."""
    config, model = learner.config, learner.model
    a, language, seed = config.algorithm, config.language, config.train.seed
    questions, each = prompts.questions(update), range(language.group)
    asked = [model.checkpoint.tokens(question.prompt) for question in questions for _ in each]
    streams = [seeding.stream(seed, "action", index, j, update) for index in prompts.indices for j in each]
    factors_F = learner.weights().detach()
    done = sampler.complete(
        model,
        factors_F,
        asked,
        streams,
        max_tokens=language.max_tokens,
        temperature=language.temperature,
        noise=learner.acting_noise(update),
        precision=config.rollout.precision,
    )
    of = [question for question in questions for _ in each]
    rewards_N = np.array([prompts.task.reward(*pair) for pair in zip(texts(model, done), of, strict=True)])
    prompts.ended(rewards_N, done.length_N.numpy())
    rewards_NJ = torch.from_numpy(rewards_N.reshape(len(questions), language.group)).to(learner.dtype)
    adv_NJ = grpo.advantages(rewards_NJ, a.normalize_advantages, a.normalize_epsilon)
    token_NT = (torch.arange(done.tokens_NT.shape[1]) < done.length_N[:, None]).to(learner.dtype)
    samples = Samples(asked, done, adv_NJ.reshape(-1), done.log_prob_NT.to(learner.dtype), token_NT)
    if a.cap is not None:  # the ratio is the learned policy's own, and what acted differently only weighs
        with torch.no_grad():
            learned_NT = learner.log_prob(factors_F, samples)
        weight_NT = (learned_NT - samples.old_log_prob_NT).exp().clamp(max=a.cap)
        samples.old_log_prob_NT, samples.weight_NT = learned_NT, token_NT * weight_NT
    return samples, rewards_NJ


def _dealt(indices: Sequence[int], minibatches: int) -> list[list[int]]:
    """Which of the prompts here are in which minibatch: by their global numbers, whatever rank they are on.

    >>> _dealt([4, 5, 6, 7, 8], 2)
    [[0, 2, 4], [1, 3]]
    """
    return [[place for place, i in enumerate(indices) if i % minibatches == part] for part in range(minibatches)]
