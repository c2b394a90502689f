import numpy as np
import pytest
import torch

from distqtrl.config.stages import MappingModel
from distqtrl.errors import UserError
from distqtrl.mapping import hadamard
from distqtrl.mapping.model import Mapping

LAYERS = [(40, 4), (33, 10)]  # a 4-8-3 policy, and 73 weights: not a multiple of 4, 16 or 64


def mapping(layers=LAYERS, num_qubits=0, **fields):
    torch.manual_seed(0)
    return Mapping(MappingModel(**fields), layers, num_qubits).double()


def fresh():
    return torch.linspace(-1, 1, 73, dtype=torch.float64)


def probabilities(n, seed=0):
    p_S = np.random.default_rng(seed).exponential(size=2**n)
    return torch.from_numpy(p_S / p_S.sum())


def features(p_K, n, gamma=0.1):
    """Bits and centred probability of the first K basis states, in NumPy."""
    bits = [[2.0 * int(digit) - 1 for digit in format(i, f"0{n}b")] for i in range(len(p_K))]
    x_K = np.tanh(gamma * 2 ** (n - 1) * np.asarray(p_K))
    return np.column_stack([bits, x_K - x_K.mean()])


@pytest.mark.parametrize("kind", ["gnn", "mlp"])
@pytest.mark.parametrize(("chunk", "nodes", "n"), [(1, 73, 7), (4, 19, 5), (16, 5, 3), (64, 2, 1), (100, 1, 1)])
def test_shapes(kind, chunk, nodes, n):
    m = mapping(kind=kind, chunk=chunk)
    assert (m.num_weights, m.num_nodes, m.num_qubits) == (73, nodes, n)
    w_M = m(probabilities(n))
    assert (w_M.shape, w_M.dtype) == ((73,), torch.float64)
    assert w_M.isfinite().all()


@pytest.mark.parametrize("activation", ["tanh", "relu", "none"])
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_mlp_sees_every_node_by_itself_and_node_i_makes_weights_from_i_times_chunk(activation, chunk):
    m = mapping(kind="mlp", output="raw", activation=activation, chunk=chunk, hidden=(6, 5))
    linears = [(a.weight.detach().numpy(), a.bias.detach().numpy()) for a in m.network if hasattr(a, "weight")]
    act = {"tanh": np.tanh, "relu": lambda h: np.maximum(h, 0), "none": lambda h: h}[activation]
    p_S = probabilities(m.num_qubits)
    w_M = np.full(m.num_nodes * chunk, np.nan)
    for i, h in enumerate(features(p_S[: m.num_nodes], m.num_qubits)):
        for weight, bias in linears[:-1]:
            h = act(weight @ h + bias)
        w_M[i * chunk : (i + 1) * chunk] = linears[-1][0] @ h + linears[-1][1]
    w_M = w_M[: m.num_weights]
    np.testing.assert_allclose(m(p_S).detach(), w_M - w_M.mean(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("activation", ["tanh", "relu", "none"])
@pytest.mark.parametrize("chunk", [1, 16])
def test_gnn_averages_over_the_neighbours_on_the_hypercube(activation, chunk):
    m = mapping(kind="gnn", output="raw", activation=activation, chunk=chunk, hidden=(6, 5), gamma=0.3)
    n, parameters = m.num_qubits, {name: p.detach().numpy() for name, p in m.network.named_parameters()}
    act = {"tanh": np.tanh, "relu": lambda h: np.maximum(h, 0), "none": lambda h: h}[activation]
    p_S = probabilities(n)
    h = features(p_S, n, gamma=0.3)  # of all 2^n nodes: those whose output is dropped still pass on theirs
    for k in range(2):
        near = np.array([np.mean([h[i ^ (1 << b)] for b in range(n)], axis=0) for i in range(2**n)])
        own, other, bias = (
            parameters[f"convolutions.{k}.{s}"] for s in ("lin_root.weight", "lin_rel.weight", "lin_rel.bias")
        )
        h = act(h @ own.T + near @ other.T + bias)
    w_M = (h @ parameters["readout.weight"].T + parameters["readout.bias"]).flatten()[: m.num_weights]
    np.testing.assert_allclose(m(p_S).detach(), w_M - w_M.mean(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["gnn", "mlp"])
def test_dropped_basis_states(kind):
    """A graph network uses the probability of a basis state that yields no weight, an MLP does not."""
    m = mapping(kind=kind, chunk=16, output="raw")  # 5 of 8
    p_S = probabilities(3)
    other_S = p_S.clone()
    other_S[[5, 7]] = p_S[[7, 5]]
    assert torch.equal(m(p_S), m(other_S)) == (kind == "mlp")


@pytest.mark.parametrize("kind", ["gnn", "mlp"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "none"])
@pytest.mark.parametrize("chunk", [1, 16])
def test_fan_in_starts_every_layer_like_a_fresh_linear(kind, activation, chunk):
    m = mapping(kind=kind, activation=activation, chunk=chunk)
    p_S = probabilities(m.num_qubits)
    m.calibrate(p_S, fresh())
    w_M, start = m(p_S).detach(), 0
    for size, fan_in in LAYERS:
        layer = w_M[start : start + size]
        assert layer.mean().item() == pytest.approx(0, abs=1e-13)
        assert layer.std().item() == pytest.approx((3 * fan_in) ** -0.5, abs=1e-13)
        start += size


def test_fan_in_scale_stays_after_the_start():
    """Later weights are an affine image of the raw ones, so training can change their mean and deviation."""
    m = mapping(kind="mlp")
    p_S = probabilities(m.num_qubits)
    m.calibrate(p_S, fresh())
    scale_M, negative_shift_M = m.scale_M.clone(), m.negative_shift_M.clone()
    with torch.no_grad():
        m.network[-1].weight *= 3
    w_M = m(p_S)
    assert torch.equal(m.scale_M, scale_M)
    assert torch.allclose(w_M, scale_M * m.out(p_S) + negative_shift_M, rtol=0, atol=1e-15)
    assert w_M[:40].std().item() == pytest.approx(3 * 12**-0.5, abs=1e-13)


@pytest.mark.parametrize("kind", ["gnn", "mlp"])
@pytest.mark.parametrize("chunk", [1, 16])
def test_raw_output_has_zero_mean_and_no_scale(kind, chunk):
    m = mapping(kind=kind, chunk=chunk, output="raw")
    p_S = probabilities(m.num_qubits)
    before_M = m(p_S)
    m.calibrate(p_S, fresh())
    assert torch.equal(m(p_S), before_M)
    assert before_M.mean().item() == pytest.approx(0, abs=1e-15)
    assert torch.equal(before_M, m.out(p_S) - m.out(p_S).mean())


@pytest.mark.parametrize(
    ("n_weights", "hidden", "chunk", "expected"),
    [(898, (10, 10, 10), 1, 351), (4835, (10, 64, 10), 1, 1515), (898, (8,), 16, (6 + 1 + 1) * 8 + 9 * 16)],
)
def test_number_of_parameters_of_the_mlp(n_weights, hidden, chunk, expected):
    m = mapping([(n_weights, 4)], kind="mlp", hidden=hidden, chunk=chunk)
    assert sum(p.numel() for p in m.parameters()) == expected


@pytest.mark.parametrize("kind", ["gnn", "mlp", "expansion", "gnn_expansion"])
def test_residual_starts_at_a_fresh_policy_and_adds_the_change(kind):
    m = mapping(kind=kind, chunk=16, output="residual", gain=3.0, feature="linear", num_qubits=5)
    p_S, other_S = probabilities(5), probabilities(5, seed=1)
    m.calibrate(p_S, fresh())
    torch.testing.assert_close(m(p_S), fresh(), rtol=0, atol=1e-14)
    change_M = m.out(other_S) - m.out(p_S)
    torch.testing.assert_close(m(other_S) - fresh(), m.scale_M * change_M, rtol=0, atol=1e-13)
    deviation = 1.0 if kind == "expansion" else m.out(p_S)[:40].std().item()
    assert m.scale_M[0].item() == pytest.approx(3 * 12**-0.5 / deviation)


@pytest.mark.parametrize("kind", ["gnn", "mlp", "gnn_expansion"])
def test_a_mapping_that_is_not_trained_has_no_parameters_to_train(kind):
    assert not [p for p in mapping(kind=kind, trained=False, num_qubits=7).parameters() if p.requires_grad]


def test_a_graph_network_followed_by_an_expansion_mixes_what_its_nodes_hold():
    m = mapping(kind="gnn_expansion", hidden=(4,), num_qubits=5, output="residual")
    p_S = probabilities(5)
    m.calibrate(p_S, fresh())
    held, hidden = m.network.readout, []
    hook = held.register_forward_hook(lambda module, inputs, out: hidden.append(inputs[0]))
    out_M = m.out(p_S)
    hook.remove()
    signs = held.signs_BS.double() @ torch.diag(hidden[0].reshape(-1))  # every block's own
    torch.testing.assert_close(out_M, (signs @ hadamard.matrix(7, torch.float64)).reshape(-1)[:73] / 128**0.5)


@pytest.mark.parametrize(("kind", "used"), [("gnn", 32), ("gnn_expansion", 32), ("mlp", 19)])
def test_codes_stand_where_bits_do_and_are_trained(kind, used):
    made = mapping(kind=kind, chunk=4, codes=2, num_qubits=5)
    bits = mapping(kind=kind, chunk=4, num_qubits=5)
    assert made.bits.shape == (used, 2)
    p_S = probabilities(5)
    (gradient,) = torch.autograd.grad(made(p_S).square().sum(), made.bits)
    assert gradient.abs().min() > 0
    assert "bits" in dict(made.named_parameters())
    assert "bits" not in dict(bits.named_parameters())
    frozen = mapping(kind=kind, chunk=4, codes=2, num_qubits=5, trained=False)
    assert torch.equal(frozen.bits, made.bits)
    assert not frozen.bits.requires_grad
    assert "bits" in made.state_dict()
    with torch.no_grad():  # codes that are the bits
        twin = mapping(kind=kind, chunk=4, codes=5, num_qubits=5)
        twin.load_state_dict({**bits.state_dict(), "bits": bits.bits})
    torch.testing.assert_close(twin(p_S), bits(p_S), rtol=0, atol=0)


def test_an_expansion_has_no_use_for_codes():
    with pytest.raises(UserError, match=r"mapping.codes = 2 with mapping.kind expansion: .* gnn, mlp or gnn_exp"):
        mapping(kind="expansion", codes=2, num_qubits=5)
