"""QTRL (arXiv 2407.06103) as its authors ran it: an independent NumPy twin with hand-written gradients, and the counts.

The twin keeps psi_S flat and gathers pairs of amplitudes by bit; it shares no code and no library with ours.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch

from distqtrl.config.sources import preset, with_flags
from distqtrl.generator.generator import Generator, effective_parameters
from distqtrl.policy.network import Architecture
from distqtrl.report.describe import describe

TOLERANCE = 1e-6
POLICY = {
    "qtrl-cartpole": Architecture(4, (128,), 2, "relu"),
    "qtrl-minigrid": Architecture(147, (32,), 3, "relu"),
}
HIDDEN = {"qtrl-cartpole": (10, 10, 10), "qtrl-minigrid": (10, 64, 10)}
WEIGHTS = {"qtrl-cartpole": 898, "qtrl-minigrid": 4835}
QUBITS = {"qtrl-cartpole": 10, "qtrl-minigrid": 13}
TOTALS = [
    ("qtrl-cartpole", 1, 411),
    ("qtrl-cartpole", 3, 531),
    ("qtrl-cartpole", 5, 651),
    ("qtrl-minigrid", 3, 1749),
    ("qtrl-minigrid", 7, 2061),
    ("qtrl-minigrid", 13, 2529),
]
DEPTHS = [(name, depth) for name, depth, _ in TOTALS]


def generator(name, depth):
    flags = {"train.precision": "float64", "qpu.precision": "float64", "circuit.layers": str(depth)}
    g = Generator(with_flags(preset(name), flags), POLICY[name].layers)
    g.set_precision(torch.float64)
    return g


def u3(t, p, l):  # noqa: E741
    c, s, ep, el = np.cos(t / 2), np.sin(t / 2), np.exp(1j * p), np.exp(1j * l)
    return np.array([[c, -el * s], [ep * s, ep * el * c]])


def u3_derivatives(t, p, l):  # noqa: E741
    """dU/dt, dU/dp, dU/dl."""
    c, s, ep, el = np.cos(t / 2), np.sin(t / 2), np.exp(1j * p), np.exp(1j * l)
    yield np.array([[-s, -el * c], [ep * c, -ep * el * s]]) / 2
    yield np.array([[0, 0], [1j * ep * s, 1j * ep * el * c]])
    yield np.array([[0, -1j * el * s], [0, 1j * ep * el * c]])


def pairs(n, target, control=None):
    """The basis states that a gate mixes: rows target = 0 and target = 1, where control (if any) is 1."""
    i_S = np.arange(2**n)
    bit = [1 << (n - 1 - wire) for wire in range(n)]
    keep = (i_S & bit[target]) == 0
    if control is not None:
        keep &= (i_S & bit[control]) != 0
    return np.stack([i_S[keep], i_S[keep] | bit[target]])


class Twin:
    """Sections 2.1 to 2.3 of the specification: forward, and the gradients of <v_M, w_M>."""

    def __init__(self, n, depth, num_weights):
        self.n, self.num_weights = n, num_weights
        block = [pairs(n, wire) for wire in range(n)]
        block += [pairs(n, (wire + 1) % n, control=wire) for wire in range(n)]
        self.gates = block * depth
        states = range(num_weights)
        self.bits_Mn = np.array([[2 * int(b) - 1 for b in format(i, f"0{n}b")] for i in states], dtype=float)

    def state(self, theta_P):
        psi_S = np.zeros(2**self.n, dtype=complex)
        psi_S[0] = 1
        for k, angles in zip(self.gates, theta_P.reshape(-1, 3), strict=True):
            psi_S[k] = u3(*angles) @ psi_S[k]
        return psi_S

    def map(self, psi_S, linears):
        """tanh_M and every linear layer's input, then its last output."""
        tanh_M = np.tanh(0.1 * 2 ** (self.n - 1) * abs(psi_S[: self.num_weights]) ** 2)
        hidden = [np.column_stack([self.bits_Mn, tanh_M - tanh_M.mean()])]
        for weight, bias in linears:
            hidden.append(hidden[-1] @ weight.T + bias)
        return tanh_M, hidden

    def weights(self, theta_P, linears):
        out_M = self.map(self.state(theta_P), linears)[1][-1][:, 0]
        return out_M - out_M.mean()

    def gradients(self, theta_P, linears, v_M):
        """d <v_M, w_M> / d theta_P, and [(d weight, d bias)] of the linear layers."""
        psi_S = self.state(theta_P)
        tanh_M, hidden = self.map(psi_S, linears)
        d = (v_M - v_M.mean())[:, None]
        d_linears = []
        for (weight, _), h in zip(linears[::-1], hidden[-2::-1], strict=True):
            d_linears.append((d.T @ h, d.sum(axis=0)))
            d = d @ weight
        d_x_M = d[:, -1] - d[:, -1].mean()
        d_p_S = np.zeros(2**self.n)
        d_p_S[: self.num_weights] = d_x_M * (1 - tanh_M**2) * 0.1 * 2 ** (self.n - 1)

        costate_S, d_theta = d_p_S * psi_S, []
        for k, angles in zip(self.gates[::-1], theta_P.reshape(-1, 3)[::-1], strict=True):
            inverse = u3(*angles).conj().T
            psi_S[k] = inverse @ psi_S[k]
            d_theta.append([2 * np.vdot(costate_S[k], dU @ psi_S[k]).real for dU in u3_derivatives(*angles)])
            costate_S[k] = inverse @ costate_S[k]
        return np.array(d_theta[::-1]).ravel(), d_linears[::-1]


def drawn(name, depth, seed=7):
    """A twin with random parameters of the sizes of section 2.3, and a random v_M."""
    rng, n, num_weights = np.random.default_rng(seed), QUBITS[name], WEIGHTS[name]
    widths = (n + 1, *HIDDEN[name], 1)
    linears = [(rng.normal(size=(o, i)) / i**0.5, rng.normal(size=o)) for i, o in pairwise(widths)]
    return Twin(n, depth, num_weights), rng.uniform(-np.pi, np.pi, 6 * n * depth), linears, rng.normal(size=num_weights)


def assert_close(ours, twins):
    assert ours.shape == twins.shape
    scale = abs(twins).max()
    assert scale > 1e-3
    assert abs(ours - twins).max() <= TOLERANCE * min(1, scale)


@pytest.mark.parametrize(("name", "depth"), [("qtrl-cartpole", 5), ("qtrl-minigrid", 3)])
def test_twin_gradients_equal_finite_differences(name, depth):
    twin, theta_P, linears, v_M = drawn(name, depth)
    d_theta_P, d_linears = twin.gradients(theta_P, linears, v_M)
    assert np.linalg.norm(twin.state(theta_P)) == pytest.approx(1, abs=1e-12)
    rng, step = np.random.default_rng(0), 1e-5
    arrays = [theta_P, *(array for linear in linears for array in linear)]
    gradients = [d_theta_P, *(array for linear in d_linears for array in linear)]
    for values, gradient in zip(arrays, gradients, strict=True):
        for k in rng.choice(values.size, min(values.size, 16 if values is theta_P else 4), replace=False):
            at, ends = values.flat[k], []
            for sign in (1, -1):
                values.flat[k] = at + sign * step
                ends.append(v_M @ twin.weights(theta_P, linears))
            values.flat[k] = at
            assert gradient.flat[k] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("name", "depth"), DEPTHS)
def test_weights_and_all_gradients_equal_the_twin(name, depth):
    g = generator(name, depth)
    arrays = [p.detach().numpy() for p in g.mapping.parameters()]
    theta_P, linears = g.theta_P.detach().numpy(), list(zip(arrays[::2], arrays[1::2], strict=True))
    assert [weight.shape[::-1] for weight, _ in linears] == list(pairwise((QUBITS[name] + 1, *HIDDEN[name], 1)))
    twin, v_M = Twin(QUBITS[name], depth, WEIGHTS[name]), np.random.default_rng(1).normal(size=WEIGHTS[name])

    w_M = g()
    w_M.backward(torch.from_numpy(v_M))
    assert_close(w_M.detach().numpy(), twin.weights(theta_P, linears))

    d_theta_P, d_linears = twin.gradients(theta_P, linears, v_M)
    assert_close(g.theta_P.grad.numpy(), d_theta_P)
    grads = [p.grad.numpy() for p in g.mapping.parameters()]
    for weight, bias, (d_weight, d_bias) in zip(grads[::2], grads[1::2], d_linears, strict=True):
        assert_close(weight, d_weight)
        assert abs(bias - d_bias).max() <= TOLERANCE
        assert abs(bias).max() < 1e-9  # the mean subtraction removes every bias
    assert (abs(g.theta_P.grad.numpy()) < 1e-12).sum() == 2 * QUBITS[name] - 1  # angles that move no probability


@pytest.mark.parametrize(("name", "depth", "total"), TOTALS)
def test_totals_at_the_depths_of_the_paper(name, depth, total):
    source, mapping = 6 * QUBITS[name] * depth, {"qtrl-cartpole": 351, "qtrl-minigrid": 1515}[name]
    assert generator(name, depth).counts() == {"source": source, "mapping": mapping, "total": total}


@pytest.mark.parametrize(("depth", "rank"), [(1, 21), (3, 120)])
def test_effective_parameters_are_the_rank_of_the_circuit_and_of_an_affine_map(depth, rank):
    assert effective_parameters([generator("qtrl-cartpole", depth)]) == rank + 11


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("qtrl-cartpole", (898, 10, 300, 351, 651, 231)),
        ("qtrl-minigrid", (4835, 13, 1014, 1515, 2529, 820)),
    ],
)
def test_presets_have_the_sizes_of_the_notebooks(name, facts):
    names = ("policy_weights", "qubits", "circuit_parameters", "mapping_parameters", "total_parameters")
    if name == "qtrl-minigrid":
        pytest.importorskip("minigrid")
    described = describe(preset(name))
    assert tuple(described[key] for key in (*names, "effective_parameters")) == facts
