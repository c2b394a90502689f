import numpy as np
import pytest
import torch
from torch.nn import functional

from distqtrl.config.run import Config
from distqtrl.errors import UserError
from distqtrl.generator.generator import Generator, effective_parameters

CARTPOLE = [(640, 4), (258, 128)]  # QTRL's policy 4-128-2
SMALL = [(40, 4), (27, 8)]
TRAINED = {
    "circuit": {"theta_P"},
    "frozen_circuit": set(),
    "frozen_random": set(),
    "free_vector": {"logits_S"},
    "uniform": set(),
    "direct": {"w_M"},
}


def generator(source="circuit", seed=0, layers=SMALL, circuit=None, **mapping):
    values = {"generator": {"source": source}, "train": {"seed": seed}, "circuit": circuit or {}, "mapping": mapping}
    return Generator(Config.model_validate(values), layers)


def qtrl(seed=0, circuit_layers=5, layers=CARTPOLE, hidden=(10, 10, 10)):
    """The authors' setup, CartPole's unless told."""
    mapping = {"kind": "mlp", "hidden": hidden, "activation": "none", "output": "raw", "chunk": 1}
    return generator(seed=seed, layers=layers, circuit={"layers": circuit_layers}, **mapping)


def twin_probabilities(n, layers, theta_P):
    """QTRL section 2.1: the state as a tensor with one axis per wire."""
    angles, psi = iter(theta_P.reshape(-1, 3)), np.zeros((2,) * n, dtype=complex)
    psi[(0,) * n] = 1

    def u3():
        t, p, l = next(angles)  # noqa: E741
        c, s = np.cos(t / 2), np.sin(t / 2)
        return np.array([[c, -np.exp(1j * l) * s], [np.exp(1j * p) * s, np.exp(1j * (p + l)) * c]])

    for _ in range(layers):
        for wire in range(n):
            psi = np.moveaxis(np.tensordot(u3(), psi, (1, wire)), 0, wire)
        for wire in range(n):
            pair = np.moveaxis(psi, (wire, (wire + 1) % n), (0, 1)).copy()
            pair[1] = np.tensordot(u3(), pair[1], 1)
            psi = np.moveaxis(pair, (0, 1), (wire, (wire + 1) % n))
    return abs(psi.flatten()) ** 2


def twin(theta_P, linears, layers, num_weights, gamma=0.1, beta=1.0, alpha=1.0):
    """QTRL section 2.2 in NumPy."""
    n = int(np.ceil(np.log2(num_weights)))
    p = twin_probabilities(n, layers, theta_P)[:num_weights]
    x = (beta * np.tanh(gamma * 2 ** (n - 1) * p)) ** alpha
    bits = np.array([[1.0 if digit == "1" else -1.0 for digit in f"{i:0{n}b}"] for i in range(num_weights)])
    h = np.column_stack([bits, x - x.mean()])
    for weight, bias in linears:
        h = h @ weight.T + bias
    return h[:, 0] - h.mean()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_generator_equals_an_independent_qtrl(seed, dtype, tolerance):
    g = qtrl(seed)
    g.set_precision(dtype)
    state = {name: value.double().numpy() for name, value in g.state_dict().items()}
    linears = [(state[f"mapping.network.{k}.weight"], state[f"mapping.network.{k}.bias"]) for k in (0, 2, 4, 6)]
    w_M = g().detach()
    assert (w_M.shape, w_M.dtype) == ((898,), dtype)
    np.testing.assert_allclose(w_M, twin(state["theta_P"], linears, 5, 898), rtol=0, atol=tolerance)
    assert 1e-3 < w_M.std().item() < 1  # far above the tolerance


@pytest.mark.parametrize(
    ("source", "counts", "effective"),
    [
        ("frozen_random", (0, 153), 8),  # 7 bits and the probability: the rest of an affine mapping is redundant
        ("uniform", (0, 153), 7),
        ("free_vector", (128, 153), 66),  # all 67 weights but their mean
        ("direct", (67, 0), 67),
    ],
)
def test_effective_parameters_count_what_moves_the_weights(source, counts, effective):
    g = generator(source, kind="mlp", activation="none", output="raw")
    assert g.counts() == {"source": counts[0], "mapping": counts[1], "total": sum(counts)}
    assert effective_parameters([g]) == effective


@pytest.mark.parametrize("source", TRAINED)
@pytest.mark.parametrize("kind", ["gnn", "mlp"])
def test_an_optimizer_step_moves_what_is_trained_and_nothing_else(source, kind):
    g = generator(source, kind=kind, chunk=4)
    assert {name for name, _ in g.named_parameters() if not name.startswith("mapping.")} == TRAINED[source]
    assert (g.mapping is None) == (source == "direct")
    before = {name: value.clone() for name, value in g.state_dict().items()}
    target_M = torch.linspace(-1, 1, 67)
    loss = functional.mse_loss(g(), target_M)
    loss.backward()
    for name, parameter in g.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name
    torch.optim.Adam(g.parameters(), lr=0.01).step()
    moved = {name for name, value in g.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in g.named_parameters()}
    assert functional.mse_loss(g(), target_M) < loss


def test_gradient_through_the_whole_generator_equals_finite_differences():
    g = generator(kind="gnn", chunk=16, circuit={"layers": 1})
    g.set_precision(torch.float64)
    names = [name for name, _ in g.named_parameters()]

    def weights(*values):
        return torch.func.functional_call(g, dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(weights, tuple(g.parameters()))


@pytest.mark.parametrize("source", TRAINED)
def test_equal_seeds_give_equal_parameters(source):
    state, same, other = (generator(source, seed, kind="mlp").state_dict() for seed in (3, 3, 4))
    assert state.keys() == same.keys()
    for name, value in state.items():
        assert torch.equal(value, same[name]), name
        if name != "p_S" or source != "uniform":
            assert not torch.equal(value, other[name]), name


def test_torch_generator_of_the_caller_is_left_alone():
    before = torch.get_rng_state()
    generator("direct")
    generator("circuit")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("source", [source for source in TRAINED if source != "direct"])
def test_probabilities_are_a_distribution(source):
    p_S = generator(source).probabilities()
    assert (p_S.shape, p_S.dtype) == ((128,), torch.float64)
    assert (p_S > 0).all()
    assert p_S.sum().item() == pytest.approx(1, abs=1e-12)
    assert p_S.requires_grad == bool(TRAINED[source])


def test_controls_start_where_the_source_they_replace_starts():
    p = {source: generator(source, seed=5).probabilities() for source in TRAINED if source != "direct"}
    torch.testing.assert_close(p["frozen_circuit"], p["circuit"], rtol=0, atol=1e-15)
    torch.testing.assert_close(p["free_vector"], p["frozen_random"], rtol=0, atol=1e-15)
    assert p["uniform"].tolist() == [1 / 128] * 128


def test_initial_angles_are_uniform_on_the_circle():
    theta_P = qtrl(circuit_layers=50).theta_P.detach().numpy()
    counts, _ = np.histogram(theta_P, bins=6, range=(-np.pi, np.pi))
    assert counts.sum() == len(theta_P) == 3000
    assert abs(counts - 500).max() < 80  # 4 deviations


@pytest.mark.parametrize("source", TRAINED)
@pytest.mark.parametrize("kind", ["gnn", "mlp"])
def test_every_source_starts_like_a_fresh_policy(source, kind):
    w_M, start = generator(source, layers=CARTPOLE, kind=kind).forward().detach(), 0
    exact = source != "direct"
    for size, fan_in in CARTPOLE:
        layer = w_M[start : start + size]
        assert layer.mean().item() == pytest.approx(0, abs=1e-6 if exact else 0.15 * fan_in**-0.5)
        assert layer.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=1e-5 if exact else 0.1)
        assert exact or layer.abs().max() <= fan_in**-0.5
        start += size


@pytest.mark.parametrize("source", TRAINED)
def test_precision_is_that_of_everything_right_of_the_probabilities(source):
    g = generator(source)
    parameters, single_M = list(g.parameters()), g().detach()
    assert single_M.dtype == torch.float32
    g.set_precision(torch.float64)
    assert g().dtype == torch.float64
    torch.testing.assert_close(g().detach(), single_M.double(), rtol=0, atol=1e-5)
    assert all(p.dtype == torch.float64 for p in g.parameters())
    assert all(a is b for a, b in zip(g.parameters(), parameters, strict=True))  # an optimizer may hold them
    g.set_precision(torch.float32)
    assert g().dtype == torch.float32
    double = {name for name, value in g.state_dict().items() if value.dtype == torch.float64}
    assert double == {"theta_P", "logits_S", "p_S"} & g.state_dict().keys()


@pytest.mark.parametrize("field", [{"circuit": {"ansatz": "ry_cnott"}}, {"qpu": {"backend": "state_vector"}}])
@pytest.mark.parametrize("source", ["circuit", "frozen_circuit"])
def test_unknown_names_are_refused_with_the_nearest(field, source):
    config = Config.model_validate({"generator": {"source": source}, "mapping": {"kind": "mlp"}, **field})
    with pytest.raises(UserError, match=r"unknown (ansatz|qpu.backend) '.*': did you mean '(ry_cnot|statevector)'\?"):
        Generator(config, SMALL)


def test_more_than_the_memory_is_refused_before_it_is_taken(monkeypatch):
    monkeypatch.setattr("distqtrl.generator.generator.machine_memory", lambda: 3 * 4096.0)
    assert generator(kind="mlp", chunk=2).qpu.num_qubits == 6
    with pytest.raises(UserError, match=r"take 7 qubits and about 0 GiB, this machine has 0: raise mapping\.chunk"):
        generator(kind="mlp", chunk=1)
