"""The discrete SAC learner: its gradients beside plain autograd, what it plays, what it leaves, how it fails."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

from distqtrl.algorithm.replay import Transitions
from distqtrl.allreduce.communicator import Serial
from distqtrl.config.sources import preset, with_flags
from distqtrl.errors import UserError
from distqtrl.policy import network
from distqtrl.training import updates
from distqtrl.training.build import prepare
from distqtrl.training.soft_actor_critic import update as off_policy
from distqtrl.training.soft_actor_critic.discrete import DiscreteSoftActorCritic

FLAGS = {
    "generator.source": "direct",
    "policy.hidden": "8",
    "policy.normalize_observations": "false",
    "algorithm.value_hidden": ["16", "16"],
    "algorithm.rollout_steps": "20",
    "algorithm.learning_starts": "0",
    "algorithm.batch_size": "12",
    "environment.local_num": "1",
    "train.precision": "float64",
    "train.steps": "1000",
}


def prepared(**flags):
    words = {**FLAGS, **{key.replace("__", "."): value for key, value in flags.items()}}
    return prepare(with_flags(preset("cartpole-sac"), words), Serial())


def batch(num=12):
    rng = np.random.default_rng(0)
    obs, after = rng.normal(size=(2, num, 4)).astype(np.float32)
    return Transitions(obs, rng.integers(2, size=(num, 1)).astype(np.float32), rng.normal(size=num).astype(np.float32),
                       np.arange(num) % 3 == 0, after)  # fmt: skip


def policy_of(learner, obs, w_M=None):
    w_M = learner.weights().detach() if w_M is None else w_M
    return Categorical(logits=network.outputs(learner.architecture, network.unpack(learner.architecture, w_M), obs))


def test_critics_step_on_the_error_of_expectations():
    learner, twin, data, none = prepared().learner, prepared().learner, batch(), torch.zeros(12, 0)
    for each in (learner, twin):
        each.log_temperature.data.fill_(-1.0)
    after, before = torch.from_numpy(data.next_obs_NO).double(), [p.detach().clone() for p in twin.critics.parameters()]
    found = learner.critic_step(data, none, 12, "here")
    policy = policy_of(twin, after)
    soft_NA = twin.targets(after).min(0).values - math.exp(-1) * policy.logits
    y_N = torch.from_numpy(data.rewards_N) + 0.99 * torch.from_numpy(~data.terminated_N) * (policy.probs * soft_NA).sum(
        1
    )
    said = twin.critics(torch.from_numpy(data.obs_NO).double())[:, range(12), data.actions_NA[:, 0].astype(int)]
    loss = sum(torch.nn.functional.mse_loss(said[k], y_N.detach()) for k in range(2))
    assert found == pytest.approx([loss.item(), said.mean().item()])
    rate = twin.config.algorithm.value_learning_rate
    for now, was, gradient in zip(
        learner.critics.parameters(), before, torch.autograd.grad(loss, list(twin.critics.parameters())), strict=True
    ):
        torch.testing.assert_close(now.detach(), was - rate * gradient / (gradient.abs() + 1e-5))  # Adam's first step


def test_the_policy_descends_its_own_loss():
    learner, twin, data = prepared().learner, prepared().learner, batch()
    for each in (learner, twin):
        each.log_temperature.data.fill_(-1.0)
    (w_M,), obs = twin.generator.parameters(), torch.from_numpy(data.obs_NO).double()
    policy = policy_of(twin, obs, w_M)
    temperature, q_NA = twin.log_temperature.exp(), twin.critics(obs).min(0).values.detach()
    policy_loss = (policy.probs * (temperature.detach() * policy.logits - q_NA)).sum(1).mean()
    temperature_loss = temperature * (policy.entropy().detach().mean() - 0.5 * math.log(2))
    gradients = torch.autograd.grad(policy_loss + temperature_loss, [w_M, twin.log_temperature])
    means, _ = learner.policy_step(data, torch.zeros(12, 0), 12, "here")
    assert means == pytest.approx([policy_loss.item(), policy.entropy().mean().item(), math.exp(-1)], rel=1e-5)
    (ours_M,) = learner.generator.parameters()
    for p, gradient in zip((ours_M, learner.log_temperature), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-5, atol=1e-9)


def test_actions_are_uniform_at_first_and_then_the_policys():
    run = prepared(algorithm__learning_starts="200", algorithm__rollout_steps="200", environment__local_num="2")
    assert isinstance(run.learner, DiscreteSoftActorCritic)
    updates.update(run, [])
    seen = run.replay.actions_BNA[:, :200]
    assert set(np.unique(seen)) == {0.0, 1.0}
    assert seen.mean() == pytest.approx(0.5, abs=0.1)
    obs_BO = np.random.default_rng(1).normal(size=(4000, 4)).astype(np.float32)[:1].repeat(4000, 0)
    act, _ = off_policy.acting(run.learner, run.environments, 0, uniform=False)
    chosen_B, played_B = act()(obs_BO, np.random.default_rng(0).random(4000))
    wanted = policy_of(run.learner, torch.from_numpy(run.learner.normalizer.apply(obs_BO[:1])).double()).probs[0, 1]
    assert (chosen_B == played_B).all()
    assert chosen_B.mean() == pytest.approx(wanted.item(), abs=0.03)


def test_a_run_with_a_circuit_learns_and_leaves_a_policy():
    run = prepared(generator__source="circuit", algorithm__learning_starts="20", algorithm__policy_every="1")
    before = run.learner.fingerprint()
    for _ in range(2):
        metrics, *_ = updates.update(run, [])
    assert run.learner.fingerprint() != before
    assert 0 < metrics["entropy"] <= math.log(2)
    (policy,) = run.policies.deployed(0)
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    logits = run.learner.acting(run.learner.weights().detach())(obs, run.learner.normalizer.apply(obs).astype(float))
    np.testing.assert_array_equal(policy.act(obs), logits.argmax(-1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"algorithm__target_entropy": "1.5"}, r"target_entropy = 1.5: of discrete actions it is a part of log A"),
        ({"algorithm__target_entropy": "-2"}, r"target_entropy = -2: of discrete actions"),
        ({"algorithm__value_hidden": ["100000", "100000"]}, "value_hidden"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        prepared(**flags)
