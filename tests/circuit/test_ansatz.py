import pytest

from distqtrl.circuit import ansatz
from distqtrl.circuit.ansatz import Gate
from distqtrl.config import UserError


@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("layers", [1, 4])
def test_number_of_angles(n, layers):
    assert ansatz.build("u3_cu3_ring", n, layers).num_angles == 6 * n * layers
    assert ansatz.build("ry_cnot", n, layers).num_angles == n * layers


@pytest.mark.parametrize(("n", "layers", "angles"), [(10, 1, 60), (10, 5, 300), (13, 3, 234), (13, 13, 1014)])
def test_number_of_angles_of_the_paper(n, layers, angles):
    assert ansatz.build("u3_cu3_ring", n, layers).num_angles == angles


def test_one_wire_has_no_ring():
    assert ansatz.u3_cu3_ring(1, 2) == [Gate("u3", 0)] * 2
    assert ansatz.ry_cnot(1, 2) == [Gate("ry", 0)] * 2


def test_order_of_gates():
    ring = [Gate("u3", 0), Gate("u3", 1), Gate("u3", 2), Gate("u3", 1, 0), Gate("u3", 2, 1), Gate("u3", 0, 2)]
    chain = [Gate("ry", 0), Gate("ry", 1), Gate("ry", 2), Gate("x", 1, control=0), Gate("x", 2, control=1)]
    assert ansatz.u3_cu3_ring(3, 2) == ring * 2
    assert ansatz.ry_cnot(3, 2) == chain * 2


def test_program_takes_angles_in_the_order_of_the_gates():
    gates = [Gate("ry", 2), Gate("x", 0, 1), Gate("u3", 1, 2), Gate("x", 2), Gate("ry", 0)]
    program = ansatz.program(3, gates)
    assert (program.num_qubits, program.num_angles) == (3, 5)
    assert [ansatz.KINDS[k] for k in program.kind_G] == ["ry", "x", "u3", "x", "ry"]
    assert program.target_G.tolist() == [2, 0, 1, 2, 0]
    assert program.control_G.tolist() == [-1, 1, 2, -1, -1]
    assert program.angle_G.tolist() == [0, 1, 1, 4, 4]


@pytest.mark.parametrize("gate", [Gate("rz", 0), Gate("x", 2), Gate("x", -1), Gate("x", 0, 2), Gate("ry", 1, 1)])
def test_gate_that_does_not_fit_is_refused(gate):
    with pytest.raises(ValueError, match="is not a gate on 2 wires; kinds are u3, ry, x"):
        ansatz.program(2, [gate])


def test_unknown_ansatz_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown ansatz 'ry_cnt': did you mean 'ry_cnot'\?"):
        ansatz.build("ry_cnt", 2, 1)
