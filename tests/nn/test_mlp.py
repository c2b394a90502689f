import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from distqtrl.errors import UserError
from distqtrl.export import folder, verify
from distqtrl.export.options import Options
from distqtrl.nn import generate, policy
from distqtrl.policy import policy_file
from distqtrl.policy.distribution import Categorical, Gaussian, SquashedGaussian

RNG = np.random.default_rng(0)
OPTIONS = Options(targets=("c",), vectors=500, episodes=5)


def actor(*more, inputs=4, outputs=2):
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs), *more)


def observations(width, num=200):
    return RNG.normal(size=(num, width)).astype(np.float32)


def test_a_generated_net_is_exported_to_c(tmp_path):
    net = generate(actor(), mapping={"kind": "mlp", "chunk": 16})
    made, obs_BO = policy(net, "CartPole-v1"), observations(4)
    assert isinstance(made.head, Categorical)
    with torch.no_grad():
        wanted_B = net(torch.from_numpy(obs_BO)).argmax(1).numpy()
    np.testing.assert_array_equal(made.act(obs_BO), wanted_B)
    file = tmp_path / "policy.safetensors"
    made.save(file)
    np.testing.assert_array_equal(policy_file.load(file).act(obs_BO), wanted_B)
    about = folder.export(file, tmp_path / "exported", OPTIONS, lambda line: None)
    checked = {check["target"]: check["status"] for check in about["checks"]}
    assert verify.DIFFERENT not in checked.values()
    assert checked["c"] == verify.EQUAL


def test_layers_may_come_in_other_ways():
    net = actor()
    obs_BO = observations(4)
    wanted_B = policy(net, "CartPole-v1").act(obs_BO)
    nested = nn.Sequential(nn.Flatten(), nn.Sequential(*net[:2]), nn.Dropout(0.5), net[2], nn.Identity())
    for same in (nested, [net[0], nn.Tanh(), net[2]], iter(net), net.double()):
        np.testing.assert_array_equal(policy(same, {"id": "CartPole-v1"}).act(obs_BO), wanted_B)
    assert policy(nn.Linear(4, 2, bias=False), "CartPole-v1").architecture.hidden == ()


def test_means_in_the_environments_units():
    net, space = actor(inputs=3, outputs=1), gymnasium.make("Pendulum-v1").action_space  # torque in -2, 2
    obs_BO = observations(3)
    with torch.no_grad():
        out_BA = net(torch.from_numpy(obs_BO)).numpy() * 3
    net[2].weight.data *= 3
    net[2].bias.data *= 3
    made = policy(net, "Pendulum-v1")
    assert isinstance(made.head, Gaussian)
    np.testing.assert_allclose(made.act(obs_BO), out_BA.clip(space.low, space.high), atol=1e-5)
    np.testing.assert_allclose(
        policy(net, "Pendulum-v1", actions="unit").act(obs_BO), 2 * out_BA.clip(-1, 1), atol=1e-5
    )
    squashed = policy(nn.Sequential(*net, nn.Tanh()), "Pendulum-v1")
    assert isinstance(squashed.head, SquashedGaussian)
    np.testing.assert_allclose(squashed.act(obs_BO), 2 * np.tanh(out_BA), atol=1e-5)


def test_normalised_observations():
    net, obs_BO = actor(inputs=3, outputs=1), observations(3) * 5
    mean_O, variance_O = np.array([1.0, -2.0, 3.0]), np.array([4.0, 9.0, 0.25])
    made = policy(net, "Pendulum-v1", observations=(mean_O, variance_O))
    normal_BO = np.clip((obs_BO - mean_O) / np.sqrt(variance_O + 1e-8), -10, 10).astype(np.float32)
    np.testing.assert_allclose(made.act(obs_BO), policy(net, "Pendulum-v1").act(normal_BO), atol=1e-5)


class Residual(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + x[:, :2]


class Concatenating(nn.Sequential):
    """As TorchRL's MLP."""

    def forward(self, *parts):
        return super().forward(torch.cat(parts, -1))


def test_a_sequential_with_a_forward_of_its_own_is_compared():
    same = Concatenating(*actor())
    assert policy(same, "CartPole-v1").architecture.hidden == (16,)
    assert same.training
    with pytest.raises(UserError, match="Residual does something else than its layers in order"):
        policy(Residual(*actor()), "CartPole-v1")


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("net", "settings", "says"),
    [
        (
            nn.Sequential(
                nn.Conv1d(1, 1, 1), nn.Linear(4, 8), nn.GELU(), nn.LSTM(8, 8), nn.Linear(8, 2), nn.Softmax(-1)
            ),
            {},
            r"0 \(Conv1d\) is neither .*; 2 \(GELU\) is neither .*; 3 \(LSTM\) is neither .*; 5 \(Softmax\) is neither",
        ),
        (
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)),
            {},
            r"3 \(Tanh\) differs from the ReLU before it",
        ),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), {}, r"1 \(Linear\) follows a Linear without ReLU or Tanh"),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), {}, r"0 \(ReLU\) follows no Linear"),
        (actor(nn.Tanh()), {}, r"3 \(Tanh\) comes after the last Linear"),
        (nn.Sequential(nn.Tanh()), {}, "there is no Linear"),
        (Own(), {}, "Own computes its actions in a forward of its own"),
        (actor(inputs=3), {}, "takes 3 numbers and gives 2; CartPole-v1 has 4 observations and needs 2 outputs"),
        (actor(), {"environment": "CartPol-v1"}, "unknown environment 'CartPol-v1'"),
        (actor(), {"actions": "degrees"}, "actions = 'degrees': write environment or unit"),
        (actor(), {"observations": ([0.0], [1.0])}, "give mean and variance of 4 numbers each"),
    ],
)
def test_what_cannot_be_exported_is_named(net, settings, says):
    with pytest.raises(UserError, match=says) as caught:
        policy(net, **{"environment": "CartPole-v1", **settings})
    assert "\n" not in str(caught.value)
