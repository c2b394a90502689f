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


def test_an_action_that_cannot_change():
    torch.manual_seed(3)  # a net whose actions are not all clipped
    net, low, high = actor(inputs=2), np.array([0, 1], np.float32), np.array([2, 1], np.float32)
    gymnasium.register("Fixed-v0", lambda: Fixed(low, high))
    actions_BA = policy(net, "Fixed-v0").act(observations(2))
    assert (actions_BA[:, 1] == 1).all()
    assert np.ptp(actions_BA[:, 0]) > 0


class Fixed(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, low, high):
        self.action_space = gymnasium.spaces.Box(low, high)


@pytest.mark.parametrize(
    ("action", "sizes", "starts"), [("levers", (3, 2, 4), (0, 1, -2)), ("switches", (2,) * 4, (0,) * 4)]
)
def test_several_choices_at_once(action, sizes, starts, tmp_path):
    net, obs_BO = actor(inputs=2, outputs=sum(sizes)), observations(2)
    made = policy(net, {"id": "choices:Levers-v0", "kwargs": {"action": action}})
    with torch.no_grad():
        parts = net(torch.from_numpy(obs_BO)).split(sizes, 1)
    wanted_BF = np.stack([part.argmax(1).numpy() + start for part, start in zip(parts, starts, strict=True)], 1)
    np.testing.assert_array_equal(made.act(obs_BO), wanted_BF)
    made.save(tmp_path / "policy.safetensors")
    np.testing.assert_array_equal(policy_file.load(tmp_path / "policy.safetensors").act(obs_BO), wanted_BF)


def test_masked_choices():
    net, obs_BO = actor(inputs=2, outputs=5), observations(2)
    made = policy(net, "choices:Doors-v0")  # counts from -1
    mask_BA = RNG.integers(2, size=(len(obs_BO), 5)).astype(np.float32)
    mask_BA[np.arange(len(obs_BO)), RNG.integers(5, size=len(obs_BO))] = 1
    with torch.no_grad():
        logits_BA = net(torch.from_numpy(obs_BO)).numpy()
    wanted_B = np.where(mask_BA > 0, logits_BA, -np.inf).argmax(1) - 1
    np.testing.assert_array_equal(made.act(np.concatenate([obs_BO, mask_BA], 1)), wanted_B)


def test_normalised_observations():
    net, obs_BO = actor(inputs=3, outputs=1), observations(3) * 5
    mean_O, variance_O = np.array([1.0, -2.0, 3.0]), np.array([4.0, 9.0, 0.25])
    made = policy(net, "Pendulum-v1", observations=(mean_O, variance_O))
    normal_BO = np.clip((obs_BO - mean_O) / np.sqrt(variance_O + 1e-8), -10, 10).astype(np.float32)
    np.testing.assert_allclose(made.act(obs_BO), policy(net, "Pendulum-v1").act(normal_BO), atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("number", [1e301, np.inf, np.nan])
def test_moments_that_no_policy_file_holds(which, number):
    moments = np.ones((2, 3))
    moments[which, 1] = number
    with pytest.raises(UserError, match=r"observations: give mean and variance of 3 numbers each, none beyond 1e\+300"):
        policy(actor(inputs=3, outputs=1), "Pendulum-v1", observations=tuple(moments))


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
    same[0].eval()
    policy(same, "CartPole-v1")
    assert [part.training for part in same.modules()] == [part is not same[0] for part in same.modules()]
    with pytest.raises(UserError, match="Residual does something else than its layers in order"):
        policy(Residual(*actor()), "CartPole-v1")


def filled(value, layer=None):
    layer = layer or nn.Linear(4, 2)
    nn.init.constant_(layer.weight, value)
    return layer


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
        (actor(), {"environment": None}, "policy: environment = None: give the id of Gymnasium, such as"),
        (actor(), {"environment": {"frames": 2}}, "policy: environment = {'frames': 2}: give the id of Gymnasium"),
        (
            actor(),
            {"environment": {"id": "CartPole-v1", "idd": 2}},
            "distqtrl.nn.policy: unknown key 'environment.idd'",
        ),
        (
            actor(inputs=2, outputs=3),
            {"environment": "choices:Levers-v0"},
            "2 observations and needs 9 outputs, a logit for every choice among 3, 2, 4",
        ),
        (filled(float("nan")), {}, r"0 \(Linear\) has weights that are not finite in single precision"),
        ([*actor()[:2], filled(float("inf"), nn.Linear(16, 2))], {}, r"2 \(Linear\) has weights that are not finite"),
        (filled(1e300, nn.Linear(4, 2).double()), {}, "not finite in single precision"),
        (
            nn.Linear(4, 2, dtype=torch.complex64),
            {},
            r"0 \(Linear\) has complex weights, a policy file holds real ones",
        ),
        (nn.LazyLinear(2), {}, r"0 \(LazyLinear\) has no weights yet"),
        (nn.Linear(4, 2, device="meta"), {}, r"0 \(Linear\) has no weights yet"),
        (actor(), {"environment": "CartPol-v1"}, "unknown environment 'CartPol-v1'"),
        (actor(), {"actions": "degrees"}, "actions = 'degrees': write environment or unit"),
        (actor(), {"observations": ([0.0], [1.0])}, "give mean and variance of 4 numbers each"),
    ],
)
def test_what_cannot_be_exported_is_named(net, settings, says):
    with pytest.raises(UserError, match=says) as caught:
        policy(net, **{"environment": "CartPole-v1", **settings})
    assert "\n" not in str(caught.value)
