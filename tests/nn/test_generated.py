import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, vector_to_parameters

from distqtrl import nn as generated
from distqtrl.config.run import Config
from distqtrl.errors import UserError
from distqtrl.generator.generator import Generator
from distqtrl.policy import network
from distqtrl.policy.network import Architecture

MLP = {"kind": "mlp", "hidden": [6], "chunk": 8}


def made(net=None, **settings):
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)) if net is None else net
    return generated.generate(net, **{"circuit": {"layers": 2}, "mapping": MLP, **settings})


def weights_of(net):
    (weights,) = generated.generators(net)
    return weights


def counts(net):
    ledger = weights_of(net).source.qpu.ledger
    return ledger.circuits, ledger.gradients


X = torch.linspace(-1, 1, 20).view(5, 4)


@pytest.mark.parametrize("mapping", [MLP, {"hidden": [6], "chunk": 4}])
def test_gradients_are_the_command_lines(mapping):
    config = Config.model_validate({"circuit": {"layers": 2}, "mapping": mapping, "train": {"seed": 3}})
    architecture, obs_BO = Architecture(4, (8,), 3, "tanh"), X.double()
    theirs = Generator(config, architecture.layers)
    theirs.set_precision(torch.float64)
    network.outputs(architecture, network.unpack(architecture, theirs()), obs_BO).pow(3).sum().backward()
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    made(net, mapping=mapping, seed=3)
    net(obs_BO).pow(3).sum().backward()
    pairs = list(zip(theirs.parameters(), net.parameters(), strict=True))
    assert len(pairs) > 4
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)
    assert pairs[0][0].grad.abs().max() > 1e-3


def test_one_circuit_per_set_of_parameters():
    net = made()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    last = torch.zeros(())
    for step in range(3):
        with torch.inference_mode() if step % 2 else torch.no_grad():  # who asks first needs no gradient
            before, last = last, net(X)
        assert not torch.allclose(before, last)
        optimizer.zero_grad()
        net(X).sum().backward()
        once = [p.grad.clone() for p in net.parameters()]
        (net(X) + net(2 * X)).sum().backward()  # several passes, one backward
        assert counts(net) == (step + 1, 2 * step + 2)
        assert not any(torch.equal(a, p.grad) for a, p in zip(once, net.parameters(), strict=True))
        optimizer.step()


def test_torchs_own_cache_reads_weights_once():
    net = made()
    out = net(X)
    with parametrize.cached():
        assert net[0].weight is net[0].weight
        assert torch.equal(net(X), out)


def test_gradients_add_up_over_backward_passes():
    net = made()
    net(X).sum().backward()
    once = [p.grad.clone() for p in net.parameters()]
    net(X).sum().backward()
    for a, p in zip(once, net.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 2 * a)


def changes():
    """Ways to change the parameters of a net, whatever counts them."""

    def load(net):
        net.load_state_dict(made(seed=1).state_dict())

    def write_data(net):
        for p in net.parameters():
            p.data.mul_(0.5).add_(0.01)

    def set_data(net):
        for p in net.parameters():
            p.data = p.data + 0.1

    def in_place(net):
        with torch.no_grad():
            weights_of(net).source.theta_P[0] += 0.1

    return [load, write_data, set_data, in_place]


@pytest.mark.parametrize("change", changes(), ids=lambda f: f.__name__)
def test_changes_are_seen(change):
    net = made()
    with torch.no_grad():
        before = net(X)
    change(net)
    fresh = copy.deepcopy(net)
    out = net(X)
    assert not torch.equal(out, before)
    assert torch.equal(out, fresh(X))
    out.sum().backward()
    fresh(X).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), fresh.parameters(), strict=True))


def test_freezing_is_seen():
    net = made()
    net(X)
    weights_of(net).source.theta_P.requires_grad_(False)
    net(X).sum().backward()
    assert weights_of(net).source.theta_P.grad is None
    assert next(weights_of(net).mapping.parameters()).grad is not None
    net.requires_grad_(False)
    assert not net(X).requires_grad


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 3, 2), nn.ReLU(), nn.BatchNorm1d(3), nn.Flatten())
        self.memory = nn.GRU(9, 4, batch_first=True)
        self.head = nn.Linear(4, 2)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.head(self.memory(self.body(x.unsqueeze(1)))[0])


def test_copies_and_files_hold_the_same_net(tmp_path):
    net = made(Policy())
    net(X).sum().backward()
    net.eval()
    out = net(X)
    twin = copy.deepcopy(net)
    torch.save(net, tmp_path / "net.pt")
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    other = made(Policy(), seed=5).eval()
    assert not torch.equal(other(X), out)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for same in (twin, loaded, other):
        assert torch.equal(same(X), out)
        assert isinstance(same, Policy)
        same(X).sum().backward()
        torch.optim.SGD(same.parameters(), 0.1).step()
        assert not torch.equal(same(X), out)
    assert torch.equal(net(X), out)  # none of them is tied to it
    again = io.BytesIO()
    torch.save(loaded, again)


def test_copies_are_parted_and_keep_what_is_on_top():
    net = made().eval()
    parametrizations.spectral_norm(net[0])
    out = net(X)
    for same in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(same(X), out)
        parametrize.remove_parametrizations(same[0], "weight")
        assert isinstance(same[0].weight, nn.Parameter)
        same(X)
        assert torch.equal(net(X), out)


@pytest.mark.parametrize(
    "mapping", [MLP, {**MLP, "output": "raw", "codes": 3}, {"kind": "gnn_expansion", "hidden": [4]}]
)
def test_parameters_to_a_vector_and_back(mapping):
    net = made(mapping=mapping)
    out = net(X).detach()
    vector = parameters_to_vector(net.parameters()).detach()  # float64, as theta is
    vector_to_parameters(vector, net.parameters())
    assert torch.equal(net(X), out)
    vector_to_parameters(0.9 * vector, net.parameters())
    net(X).sum().backward()
    assert net(X).dtype == torch.float32
    assert not torch.equal(net(X), out)
    assert net.double()(X.double()).dtype == torch.float64


def program():
    """Ways in which a program may have set torch, or not."""
    return [torch.inference_mode(), torch.no_grad(), torch.autocast("cpu"), torch.device("meta")]


@pytest.mark.parametrize("settings", program(), ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("source", [None, lambda t: torch.softmax(t, 0)], ids=["ours", "foreign"])
def test_what_a_program_sets_in_torch_changes_no_weight(settings, dtype, source):
    shapes = {"circuit": source, "weight_shapes": {"t": 16}} if source else {}
    mapping = {"kind": "gnn_expansion", "hidden": [4]}
    nets = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    out = made(nets[0], mapping=mapping, **shapes)(X)
    torch.set_default_dtype(dtype)
    try:
        with settings:
            net = made(nets[1], mapping=mapping, **shapes)
        assert torch.get_default_dtype() == dtype
        assert torch.equal(net(X), out)
        net(X).sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_net_without_numbers_is_refused():
    with pytest.raises(UserError, match="moved to the meta device: generate it on a device, then load its state_dict"):
        made().to("meta")(X.to("meta"))


def test_moving_between_types():
    net = made()
    out = net(X)
    assert torch.equal(copy.deepcopy(net)(X), out)
    rounded = copy.deepcopy(net)
    with torch.no_grad():
        angles = weights_of(rounded).source__theta_P  # float64, until a whole net is moved to float32
        angles.copy_(angles.float())
    single = copy.deepcopy(net).to("cpu", torch.float32)
    assert torch.equal(single(X), rounded(X))
    torch.testing.assert_close(single(X), out)
    double = copy.deepcopy(net).double()
    torch.testing.assert_close(double(X.double()).float(), out)
    double(X.double()).sum().backward()
    net.bfloat16()
    assert net(X.bfloat16()).dtype == torch.bfloat16
    net(X.bfloat16()).sum().backward()
    with torch.autocast("cpu"):
        first = net.float()(X)
    assert torch.allclose(net(X).bfloat16(), first, atol=0.05)
    fresh = weights_of(copy.deepcopy(net))
    assert torch.equal(weights_of(net)(), fresh())  # made outside of autocast, for whoever asks next


def test_the_net_keeps_its_parts():
    net = Policy()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert made(net) is net
    assert net.head.weight.shape == (2, 4)
    assert not torch.equal(net.head.weight, state["head.weight"])
    for name, value in net.state_dict().items():
        assert name not in state or torch.equal(value, state[name])  # norm, buffers, log_std
    assert {name for name, _ in net.named_parameters() if "parametrizations" not in name} == {
        "body.2.weight", "body.2.bias", "log_std"
    }  # fmt: skip
    with pytest.raises(Exception, match="generated"):
        net.head.weight = torch.zeros(2, 4)
    nn.init.orthogonal_(net.head.weight)
    net.head.bias.data.fill_(7.0)
    assert net.head.bias.abs().max() < 7
    parametrize.remove_parametrizations(net.head, "weight")
    assert isinstance(net.head.weight, nn.Parameter)


def test_what_initialises_every_layer_of_a_net_leaves_it_alone():
    def orthogonal(module):
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            module.bias.data.fill_(0.0)

    net = made()
    out = net(X)
    net.apply(orthogonal)
    for module in net.modules():
        orthogonal(module)
    assert torch.equal(net(X), out)
    assert [type(m) for m in net.modules() if isinstance(m, nn.Linear)] == [type(net[0]), type(net[2])]


def test_functional_call_takes_other_parameters():
    net = made()
    other = {name: p.detach() * 0.5 for name, p in net.named_parameters()}
    for p in other.values():
        p.requires_grad_()
    out = torch.func.functional_call(net, other, (X,))
    out.sum().backward()
    assert all(p.grad is not None for p in other.values())
    assert all(p.grad is None for p in net.parameters())
    assert not torch.equal(net(X), out)


def test_compiled_nets_read_the_present_weights():
    net = made()
    compiled = torch.compile(net, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(X), net(X))
        compiled(X).sum().backward()
        torch.optim.SGD(net.parameters(), 0.1).step()
    with pytest.raises(Exception, match=r"distqtrl\.nn"):
        torch.compile(net, backend="eager", fullgraph=True)(X)


def test_a_second_derivative_is_refused():
    net = made()
    (gradient,) = torch.autograd.grad(net(X).pow(2).sum(), weights_of(net).source.theta_P, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_shots_cost_shifted_circuits():
    net = made(qpu={"shots": 200}, mapping={**MLP, "chunk": 32})
    net(X).sum().backward()
    net(X)
    assert counts(net)[0] == 1 + weights_of(net).source.qpu.circuits_per_gradient


@pytest.mark.parametrize("source", ["frozen_circuit", "free_vector", "uniform"])
def test_controls(source):
    net = made(config=Config.model_validate({"generator": {"source": source}, "mapping": MLP}), circuit=None)
    net(X).sum().backward()
    trained = [name for name, _ in net.named_parameters() if "mapping" not in name]
    assert len(trained) == (source == "free_vector")
