"""Whitened angles: beside differences, and beside the free numbers that they are to move like."""

import numpy as np
import pytest
import torch

from distqtrl.circuit import qpu
from distqtrl.config.run import Config
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.generator.generator import Generator

LAYERS = [(640, 4), (258, 128)]
UNITS_M = torch.cat([torch.full((size,), (3.0 * fan_in) ** 0.5) for size, fan_in in LAYERS]).double()
CIRCUIT = {"ansatz": "ry_cnot_ring", "layers": 8, "qubits": 7}
RESIDUAL = {"output": "residual", "feature": "linear", "gain": 4.0}


def generator(kind="expansion", circuit=CIRCUIT, **fields):
    mapping = {"kind": kind, "trained": False, "hidden": (8,), **RESIDUAL}
    return Generator(Config.model_validate({"circuit": circuit, "mapping": mapping, "generator": fields}), LAYERS)


def moved(made, parameter, value):
    parameter.copy_(value)
    return made()


def jacobian(made, h=1e-4):
    """In units of a fresh policy's deviation, by differences."""
    made.set_precision(torch.float64)
    (parameter,) = made.of_source()
    start, columns = parameter.detach().clone(), []
    with torch.no_grad():
        for step in h * torch.eye(len(start), dtype=start.dtype):
            after_M, before_M = (moved(made, parameter, start + sign * step) for sign in (1, -1))
            columns.append((after_M - before_M) * UNITS_M / (2 * h))
        parameter.copy_(start)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("ansatz", ["ry_cnot_ring", "u3_cu3_ring"])
def test_the_circuits_jacobian_is_that_of_differences(ansatz):
    device = qpu.build(Circuit(ansatz=ansatz, layers=2), Qpu(), 3)
    theta_P = np.random.default_rng(0).uniform(-np.pi, np.pi, device.num_angles)
    before, h = device.ledger.circuits, 1e-6
    steps = h * np.eye(len(theta_P))
    expected = [(device.probabilities(theta_P + s)[0] - device.probabilities(theta_P - s)[0]) / (2 * h) for s in steps]
    device.ledger.circuits = before
    np.testing.assert_allclose(device.jacobian(theta_P), np.stack(expected, axis=1), rtol=0, atol=1e-9)
    assert device.ledger.circuits == before


@pytest.mark.parametrize("kind", ["expansion", "gnn_expansion"])
def test_whitened_angles_move_the_weights_as_free_numbers_do(kind):
    """Singular values: all alike, and those of a random subspace with as many numbers."""
    whitened, plain = (jacobian(generator(kind, whiten=on)) for on in (True, False))
    values, before = np.linalg.svd(whitened, compute_uv=False), np.linalg.svd(plain, compute_uv=False)
    free = jacobian(generator(source="random_subspace", numbers=56))
    expected = np.linalg.svd(free, compute_uv=False)
    assert np.median(values) == pytest.approx(np.median(expected), rel=0.02)
    assert values.max() / values.min() < 1.2
    assert before.max() / before.min() > 3


def test_redundant_angles_stay_where_they_are():
    """Without damping the directions that move nothing would be amplified without bound."""
    made = generator(circuit={"ansatz": "u3_cu3_ring", "layers": 3, "qubits": 6}, whiten=True)  # 108 angles, rank 63
    basis_PP = made.coordinates.basis_PP
    assert basis_PP.isfinite().all()
    values = np.linalg.svd(jacobian(made), compute_uv=False)
    assert (values > 0.5 * values[0]).sum() <= 63
    assert values[63:].max() < 1e-6 * values[0]


def test_it_starts_where_plain_angles_do():
    plain, whitened = generator(), generator(whiten=True)
    assert torch.equal(plain(), whitened())
    assert torch.equal(plain.angles(), whitened.angles())
    assert [name for name, _ in whitened.named_parameters()] == ["coordinates.u_P"]
    assert plain.counts() == whitened.counts() == {"source": 56, "mapping": 0, "total": 56}


def test_coordinates_made_anew_are_isotropic_where_the_angles_have_come_to():
    made = generator(whiten="every", whiten_steps=2)
    with torch.no_grad():
        made.coordinates.u_P.copy_(torch.from_numpy(np.random.default_rng(0).normal(size=56)))
    angles, w_M = made.angles().detach(), made().detach()
    before = np.linalg.svd(jacobian(made), compute_uv=False)
    made.whiten_again(3)
    assert made.coordinates.u_P.any()
    made.whiten_again(4)
    assert not made.coordinates.u_P.any()
    assert torch.equal(made.angles(), angles)
    torch.testing.assert_close(made().detach(), w_M.double(), rtol=0, atol=1e-5)
    values = np.linalg.svd(jacobian(made), compute_uv=False)
    assert before.max() / before.min() > 3
    assert values.max() / values.min() < 1.2


def test_a_metric_of_the_start_stays():
    made = generator(whiten="start")
    made.coordinates.u_P.data += 1
    made.whiten_again(1)
    assert made.coordinates.u_P.all()
