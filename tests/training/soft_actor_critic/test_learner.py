"""The SAC learner: its gradients beside plain autograd, what it leaves alone, and how it fails."""

import numpy as np
import pytest
import torch

from distqtrl.algorithm.replay import Transitions
from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Serial
from distqtrl.config.sources import preset, with_flags
from distqtrl.errors import UserError
from distqtrl.policy import network
from distqtrl.training import updates
from distqtrl.training.build import prepare
from distqtrl.training.soft_actor_critic import learner as soft_actor_critic
from distqtrl.training.soft_actor_critic import update as off_policy
from distqtrl.training.updates import prediction

FLAGS = {
    "policy.hidden": "8",
    "algorithm.value_hidden": ["16", "16"],
    "algorithm.rollout_steps": "20",
    "algorithm.learning_starts": "0",
    "algorithm.batch_size": "12",
    "train.precision": "float64",
    "train.steps": "1000",
}


def prepared(**flags):
    words = {**FLAGS, **{key.replace("__", "."): value for key, value in flags.items()}}
    return prepare(with_flags(preset("pendulum-sac"), words), Serial())


def batch(num=12):
    rng = np.random.default_rng(0)
    obs, after = rng.normal(size=(2, num, 3)).astype(np.float32)
    return Transitions(obs, rng.uniform(-1, 1, (num, 1)).astype(np.float32), rng.normal(size=num).astype(np.float32),
                       np.arange(num) % 3 == 0, after)  # fmt: skip


def values(module):
    return [p.detach().clone() for p in module.parameters()]


def test_critics_step_on_their_own_error_and_targets_follow():
    learner = prepared(algorithm__tau="0.25").learner
    before, targets, policy = values(learner.critics), values(learner.targets), learner.deviation_M.detach().clone()
    data, noise = batch(), torch.randn(12, 1, dtype=torch.float64)
    found = learner.critic_step(data, noise, 12, "here")

    twin = prepared(algorithm__tau="0.25").learner
    actions, log_prob = twin.actions(twin.weights(), *[torch.from_numpy(data.next_obs_NO).double()] * 2, noise)
    y = torch.from_numpy(data.rewards_N) + 0.99 * torch.from_numpy(~data.terminated_N) * (
        twin.targets(torch.from_numpy(data.next_obs_NO).double(), actions).min(0).values - log_prob
    )
    q = twin.critics(torch.from_numpy(data.obs_NO).double(), torch.from_numpy(data.actions_NA).double())
    loss = sum(torch.nn.functional.mse_loss(q[k], y.detach()) for k in range(2))
    assert found == pytest.approx([loss.item(), q.mean().item()])
    gradients = torch.autograd.grad(loss, list(twin.critics.parameters()))
    for now, was, gradient in zip(learner.critics.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(now.detach(), was - 0.001 * gradient / (gradient.abs() + 1e-5))  # Adam's first step
    for now, was, critic in zip(values(learner.targets), targets, values(learner.critics), strict=True):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * critic)
    assert torch.equal(learner.deviation_M, policy)


def test_crossq_sees_both_batches_at_once_and_has_no_targets():
    """One pass over (s, a) and (s', a'), whose values bootstrap without a gradient; running moments follow."""
    flags = {"algorithm__critic_norm": "batch_renorm", "algorithm__renorm_warmup": "0"}
    learner, twin = prepared(**flags).learner, prepared(**flags).learner
    assert learner.targets is None
    data, noise = batch(), torch.randn(12, 1, dtype=torch.float64)
    after = torch.from_numpy(data.next_obs_NO).double()
    actions, log_prob = twin.actions(twin.weights(), after, after, noise)
    obs = torch.cat([torch.from_numpy(data.obs_NO).double(), after])
    both = torch.cat([torch.from_numpy(data.actions_NA).double(), actions.detach()])
    values_2M = twin.critics(obs, both, batch=True)
    y = torch.from_numpy(data.rewards_N) + 0.99 * torch.from_numpy(~data.terminated_N) * (
        values_2M[:, 12:].detach().min(0).values - log_prob.detach()
    )
    loss = ((values_2M[:, :12] - y) ** 2).mean(1).sum()
    gradients = torch.autograd.grad(loss, list(twin.critics.parameters()))
    before = values(learner.critics)
    assert learner.critic_step(data, noise, 12, "here")[0] == pytest.approx(loss.item())
    for now, was, gradient in zip(learner.critics.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(now.detach(), was - 0.001 * gradient / (gradient.abs() + 1e-5))
    inputs = torch.cat([obs, both], -1)
    norm = learner.critics.norms[0]
    torch.testing.assert_close(norm.mean[1, 0], 0.01 * inputs.mean(0))
    torch.testing.assert_close(norm.variance[0, 0], 0.99 + 0.01 * inputs.var(0, correction=0))
    seen = {name: x.clone() for name, x in learner.critics.named_buffers()}
    learner.policy_step(data, noise, 12, "here")
    assert all(torch.equal(x, seen[name]) for name, x in learner.critics.named_buffers())


@pytest.mark.parametrize("norm", ["batch_renorm", "layer_norm"])
def test_generated_policies_on_integers_train_with_normalised_critics(norm):
    run = prepared(
        generator__source="circuit",
        mapping__kind="mlp",
        quantize__aware="true",
        quantize__warmup="3",
        algorithm__critic_norm=norm,
        algorithm__renorm_warmup="5",
        algorithm__policy_every="5",
        algorithm__policy_steps="1",
    )
    before = run.learner.fingerprint()
    metrics, *_ = updates.update(run, [])
    assert run.learner.num_steps == 4  # 20 steps of the critics
    assert np.isfinite([metrics["value_loss"], metrics["policy_loss"]]).all()
    assert run.learner.fingerprint() != before
    again = prepare(run.config, Serial()).learner
    again.load({name: t.reshape(tuple(t.shape) or (1,)) for name, t in run.learner.tensors().items()})
    assert again.fingerprint() == run.learner.fingerprint()


def test_the_policy_descends_its_own_loss():
    """Weights, deviation, temperature: plain autograd's gradients, away from temperature 1."""
    learner, twin = prepared().learner, prepared().learner
    data, noise = batch(), torch.randn(12, 1, dtype=torch.float64)
    for each in (learner, twin):
        each.log_temperature.data.fill_(-1.0)
    (w_M,), deviation_M = twin.generator.parameters(), twin.deviation_M
    obs = torch.from_numpy(data.obs_NO).double()
    mean, log_std = (
        network.outputs(of, network.unpack(of, w), obs)
        for of, w in ((twin.architecture, w_M), (twin.deviates, deviation_M))
    )
    normal = torch.distributions.Normal(mean, torch.exp(-1.5 + 3.5 * torch.tanh(log_std)))
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    actions = torch.tanh(normal.mean + normal.stddev * noise)
    log_prob = squashed.log_prob(actions).sum(-1)
    q = twin.critics(obs, actions).min(0).values
    temperature = twin.log_temperature.exp()
    policy_loss = (temperature.detach() * log_prob - q).mean()
    temperature_loss = -(temperature * (log_prob.detach() - 1)).mean()  # the target is -1, the negative of the actions
    leaves = [w_M, deviation_M, twin.log_temperature]
    gradients = torch.autograd.grad(policy_loss + temperature_loss, leaves)

    means, _ = learner.policy_step(data, noise, 12, "here")
    assert means == pytest.approx([policy_loss.item(), -log_prob.mean().item(), np.exp(-1)], rel=1e-5)
    (ours_M,) = learner.generator.parameters()
    for p, gradient in zip((ours_M, learner.deviation_M, learner.log_temperature), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("flags", [{"gradient_steps": "2", "policy_every": "1"}, {"train_every": "4"}])
def test_every_policy_step_reaches_what_makes_the_weights(flags, monkeypatch):
    """Also where the critics ask for the weights first, and need no gradient."""
    run = prepared(generator__source="free_vector", **{f"algorithm__{key}": value for key, value in flags.items()})
    found, reduce = [], soft_actor_critic.reduce

    def seen(learners, losses, where):
        if where.endswith("policy"):
            made = run.learner.generator.parameters()
            found.append(max(float(p.grad.abs().max()) for p in made if p.grad is not None))
        return reduce(learners, losses, where)

    monkeypatch.setattr(soft_actor_critic, "reduce", seen)
    updates.update(run, [])
    assert len(found) >= 20
    assert min(found) > 0


def test_noise_of_a_long_chunk_does_not_repeat():
    run = prepared(algorithm__rollout_steps="160", algorithm__train_every="160", algorithm__learning_starts="500")
    updates.update(run, [])
    assert len(np.unique(run.replay.actions_BNA[:, :160])) == run.replay.actions_BNA[:, :160].size


@pytest.mark.parametrize("aware", ["false", "true"])
def test_the_policy_steps_towards_what_critics_like(aware):
    learner = prepared(quantize__aware=aware, quantize__warmup="0", quantize__core_bits="4").learner
    critics, data, noise = values(learner.critics), batch(), torch.randn(12, 1, dtype=torch.float64)
    (policy_loss, entropy, temperature), _ = learner.policy_step(data, noise, 12, "here")
    assert all(torch.equal(now, was) for now, was in zip(values(learner.critics), critics, strict=True))
    assert temperature == 1.0
    assert float(learner.log_temperature.detach()) == pytest.approx(np.sign(-1 - entropy) * 0.001, rel=1e-2)
    for _ in range(50):
        (later, *_), _ = learner.policy_step(data, noise, 12, "here")
    assert later < policy_loss
    assert learner.num_steps == 51


def test_the_temperature_starts_where_it_is_told():
    learner = prepared(algorithm__temperature="0.1").learner
    assert float(learner.log_temperature.detach().exp()) == pytest.approx(0.1)


def test_nothing_is_learned_before_it_starts():
    run = prepared(algorithm__learning_starts="40")
    before = run.learner.fingerprint()
    for update in range(3):
        metrics, *_ = updates.update(run, [])
        assert (metrics["policy_loss"] is None) == (update < 2)
        assert (run.learner.fingerprint() == before) == (update < 2)
        if update < 2:
            actions = run.replay.actions_BNA[:, 20 * update : 20 * (update + 1)]
            assert np.abs(actions).max() <= 1
    assert run.replay.filled == 60


def test_circuits_are_counted_as_predicted():
    run = prepared(generator__source="circuit", algorithm__learning_starts="20", train__steps="60", mapping__kind="mlp")
    asked = prediction(run)
    circuits = []
    for _ in range(3):
        metrics, *_ = updates.update(run, [])
        circuits.append(metrics["circuits"])
    assert circuits == [0, asked["update"]["circuits"], 2 * asked["update"]["circuits"]]
    assert asked["run"]["circuits"] == circuits[-1]


def test_a_diverged_critic_is_named():
    run = prepared(algorithm__value_learning_rate="1e200")
    where = r"at update 0, gradient step \d+, critics is not finite on rank 0"
    with pytest.raises(Refused, match=f"^(target|value|loss) of the critics {where}"):
        updates.update(run, [])


def test_critics_beyond_all_rewards_are_named():
    """Adam's steps are of one length, so that critics may be lost for hours while all numbers are finite."""
    run = prepared(algorithm__value_learning_rate="10", algorithm__rollout_steps="200")
    where = r"at update 0, gradient step \d+, critics is \S+ on rank 0, rewards and entropies seen so far add up to"
    with pytest.raises(Refused, match=f"the critics diverge: their mean value {where} at most"):
        updates.update(run, [])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"algorithm__train_every": "3"}, "20 is not a multiple of 3"),
        ({"allreduce__aggregation": "sum"}, "needs allreduce.aggregation mean"),
        ({"allreduce__lost_rank": "shrink"}, "needs allreduce.lost_rank abort"),
        ({"algorithm__learning_starts": "1000"}, "leaves nothing of train.steps = 1000"),
        ({"algorithm__batch_size": "3", "environment__local_num": "4"}, "gives some of 4 environments no sample"),
        ({"algorithm__policy_every": "3"}, "policy_every = 3 must divide an update's gradient steps"),
        (
            {"algorithm__critic_norm": "batch"},
            "algorithm.critic_norm = 'batch': Input should be 'none', 'batch_renorm' or",
        ),
        ({"algorithm__rollout": "episodes"}, "needs algorithm.rollout steps, not episodes$"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        prepared(**flags)


def test_rounds_of_gradient_steps():
    run = prepared(algorithm__train_every="5", algorithm__gradient_steps="2", algorithm__policy_every="4")
    updates.update(run, [])
    assert run.learner.num_steps == 40  # 20 steps, two gradient steps each, as many of the policy


def test_greedy_actions_are_those_of_the_mean():
    run = prepared()
    (policy,) = run.policies.deployed(0)
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    mean = run.learner.acting(run.learner.weights().detach())(obs, obs)
    np.testing.assert_allclose(policy.act(obs), 2 * np.tanh(mean), rtol=1e-5)


def test_other_policies_than_the_learned_one_act():
    plain, rounded = prepared(), prepared(rollout__precision="int2")
    for run in (plain, rounded):
        act, noise = off_policy.acting(run.learner, run.environments, 0, uniform=False)
        run.seen = act()(run.environments.obs_BO, noise[0])[0]
    assert (plain.seen != rounded.seen).all()
    assert torch.equal(plain.learner.weights(), rounded.learner.weights())
