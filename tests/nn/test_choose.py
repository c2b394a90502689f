import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from distqtrl import nn as generated
from distqtrl.errors import UserError
from distqtrl.nn import choose

MAPPING = {"kind": "mlp", "hidden": [6], "chunk": 64}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.LayerNorm(5))
        self.memory = nn.LSTM(3, 5)
        self.head = nn.Linear(7, 2)
        self.log_std = nn.Parameter(torch.full((2,), -0.5))


def paths(net, layers=None):
    return [c.path for c in choose.chosen(net, layers)]


def test_weights_of_layers_are_chosen_and_values_are_not():
    assert paths(Net()) == [
        "body.0.weight", "body.0.bias",
        *(f"memory.{name}_{part}_l0" for name in ("weight", "bias") for part in ("ih", "hh")),
        "head.weight", "head.bias",
    ]  # fmt: skip
    assert choose.groups(choose.chosen(Net(), None)) == [(40, 9), (200, 5), (16, 7)]


def test_frozen_layers_stay_unless_named():
    net = Net()
    net.head.requires_grad_(False)
    assert "head.weight" not in paths(net)
    assert paths(net, ["head"]) == ["head.weight", "head.bias"]


def test_names_and_types():
    assert paths(Net(), [nn.Conv2d, "log_std"]) == ["log_std", "body.0.weight", "body.0.bias"]
    assert paths(Net(), "head.bias") == ["head.bias"]
    assert paths(Net(), ["body"])[-2:] == ["body.1.weight", "body.1.bias"]
    shared = nn.ModuleDict({"a": nn.Linear(2, 2)})
    shared["b"] = shared["a"]  # one module by two names, as in stable-baselines3, is no shared tensor
    assert paths(shared) == ["a.weight", "a.bias"]
    assert paths(shared, ["b.weight"]) == ["a.weight"]


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(30, 200), nn.Conv2d(4, 60, 3), nn.ConvTranspose2d(30, 20, 3), nn.GRU(20, 30), nn.LSTMCell(20, 30)],
    ids=lambda layer: type(layer).__name__,
)
def test_weights_start_at_the_spread_torch_draws(layer):
    before = {name: p.detach().std() for name, p in layer.named_parameters()}
    generated.generate(layer, mapping=MAPPING)
    values = torch.cat([getattr(layer, name).detach().flatten() for name in before])
    assert abs(values.mean()) < 0.1 * values.std()
    torch.testing.assert_close(values.std(), next(iter(before.values())), rtol=0.1, atol=0)


def test_named_values_are_generated_around_what_they_are():
    net = generated.generate(Net(), layers=["body.1", "log_std"], mapping=MAPPING)
    norm = net.body[1].weight.detach()
    assert 0 < (norm - 1).abs().max() < 1
    assert (net.log_std + 0.5).abs().max() < 1
    state = generated.generate(Net(), layers=["body.1", "log_std"], mapping=MAPPING, seed=1).state_dict()
    net.load_state_dict(state)
    assert not torch.equal(net.body[1].weight, norm)


def test_parts_may_have_generators_of_their_own():
    net = generated.generate(Net(), layers=["head"], mapping=MAPPING)
    generated.generate(net, layers=["body.0", "memory"], mapping=MAPPING, seed=1)
    assert len(generated.generators(net)) == 2


def tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    return net


def spectral():
    net = nn.Sequential(nn.Linear(3, 3))
    parametrizations.spectral_norm(net[0])
    return net


def scripted():
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        return torch.jit.script(nn.Linear(3, 3))


def old_style():
    with pytest.warns(FutureWarning):
        return nn.Sequential(weight_norm(nn.Linear(3, 3)))


@pytest.mark.parametrize(
    ("net", "layers", "says"),
    [
        (nn.Tanh, None, "Tanh has no parameters"),
        (lambda: nn.LayerNorm(3), None, "has no layer to generate, such as Linear"),
        (tied, None, "0.weight and 1.weight are one shared tensor: untie them"),
        (spectral, None, "0.weight belongs to a layer that is parametrized already"),
        (spectral, ["0"], "parametrized already"),
        (
            lambda: generated.generate(nn.Sequential(nn.Linear(3, 3))),
            None,
            "0.weight belongs to a layer that is parametrized already",
        ),
        (old_style, None, "is computed by a hook"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), None, "0.weight has no shape yet"),
        (Net, ["heads"], "there is no 'heads' in the net: did you mean 'head'"),
        (Net, [0], 'layers: 0 is neither the name nor the type of a layer: names are strings, such as "0"'),
        (Net, 0, "layers: 0 is neither"),
        (Net, [nn.Sequential(nn.Tanh())], "layers: Sequential.* is neither"),
        (lambda: nn.Linear(3, 3, device="meta"), None, r"weight is on the meta device: call net.to_empty"),
        (Net, [nn.Conv1d], "there is no Conv1d in the net"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double()), None, "float32 on cpu and torch.float64"),
        (lambda: nn.Linear(1, 1, bias=False), None, "weight is a single number"),
        (lambda: nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(2))), None, "0.weight is a single number"),
        (scripted, None, "the net is compiled, and keeps its weights: give it as it was before torch.jit"),
        (lambda: nn.Sequential(scripted(), nn.Tanh(), nn.Linear(3, 2)), ["2"], "0 is compiled, and keeps its weights"),
        (lambda: [nn.Linear(3, 3)], None, "list is not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_generated_is_refused_and_left(net, layers, says):
    net = net()
    names = list(net.state_dict()) if isinstance(net, nn.Module) else None
    with pytest.raises(UserError, match=says) as caught:
        generated.generate(net, layers=layers)
    assert "\n" not in str(caught.value)
    assert names is None or list(net.state_dict()) == names
