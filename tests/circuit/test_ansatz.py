import pytest

from distqtrl.circuit import ansatz
from distqtrl.circuit.ansatz import Gate
from distqtrl.config.stages import Circuit
from distqtrl.errors import UserError


@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("layers", [1, 4])
def test_number_of_angles(n, layers):
    expected = {"u3_cu3_ring": 6, "ry_cnot": 1, "ry_cnot_ring": 1, "ry_rz_cz": 2, "product": 3}
    assert set(expected) == set(ansatz.ANSATZE)
    for name, each in expected.items():
        assert ansatz.build(Circuit(ansatz=name, layers=layers), n).num_angles == each * n * layers


@pytest.mark.parametrize(("n", "layers", "angles"), [(10, 1, 60), (10, 5, 300), (13, 3, 234), (13, 13, 1014)])
def test_number_of_angles_of_the_paper(n, layers, angles):
    assert ansatz.build(Circuit(layers=layers), n).num_angles == angles


def test_one_wire_has_no_ring():
    assert ansatz.u3_cu3_ring(1, 2) == [Gate("u3", 0)] * 2
    assert ansatz.ry_cnot(1, 2) == [Gate("ry", 0)] * 2


def test_order_of_gates():
    ring = [Gate("u3", 0), Gate("u3", 1), Gate("u3", 2), Gate("u3", 1, 0), Gate("u3", 2, 1), Gate("u3", 0, 2)]
    chain = [Gate("ry", 0), Gate("ry", 1), Gate("ry", 2), Gate("x", 1, control=0), Gate("x", 2, control=1)]
    assert ansatz.u3_cu3_ring(3, 2) == ring * 2
    assert ansatz.ry_cnot(3, 2) == chain * 2
    assert ansatz.ry_cnot_ring(3, 2) == [*chain, Gate("x", 0, control=2)] * 2
    rotations = [Gate("ry", 0), Gate("ry", 1), Gate("rz", 0), Gate("rz", 1)]
    assert ansatz.ry_rz_cz(2, 2) == [*rotations, Gate("z", 1, control=0)] * 2
    assert ansatz.product(2, 2) == [Gate("u3", 0), Gate("u3", 1)] * 2


@pytest.mark.parametrize(("name", "real"), [("ry_cnot", True), ("ry_cnot_ring", True), ("ry_rz_cz", False)])
def test_programs_of_real_gates_are_known(name, real):
    assert ansatz.build(Circuit(ansatz=name), 3).real == real


def test_own_list_of_gates():
    own = Circuit(ansatz="gates", gates=[["ry", 0], ["x", 1, 0]], layers=2)
    assert ansatz.build(own, 2).gates == (Gate("ry", 0), Gate("x", 1, 0)) * 2


@pytest.mark.parametrize(
    ("circuit", "message"),
    [
        (Circuit(ansatz="gates"), "circuit.ansatz = gates needs circuit.gates"),
        (Circuit(gates=[["ry", 0]]), "circuit.gates is only read with circuit.ansatz = gates, not with 'u3_cu3_ring'"),
        (Circuit(ansatz="gates", gates=[["rq", 0]]), "unknown gate 'rq': known: h, phase"),
        (Circuit(ansatz="gates", gates=[["x", 4, 0]]), r"gate \['x', 4, 0\] .* does not fit 2 wires"),
    ],
)
def test_own_list_that_cannot_be_used_is_refused(circuit, message):
    with pytest.raises(UserError, match=message):
        ansatz.build(circuit, 2)


def test_program_takes_angles_in_the_order_of_the_gates():
    gates = [Gate("ry", 2), Gate("x", 0, 1), Gate("u3", 1, 2), Gate("x", 2), Gate("ry", 0)]
    program = ansatz.program(3, gates)
    assert (program.num_qubits, program.num_angles) == (3, 5)
    assert [list(ansatz.KINDS)[k] for k in program.kind_G] == ["ry", "x", "u3", "x", "ry"]
    assert program.target_G.tolist() == [2, 0, 1, 2, 0]
    assert program.control_G.tolist() == [-1, 1, 2, -1, -1]
    assert program.angle_G.tolist() == [0, 1, 1, 4, 4]


@pytest.mark.parametrize("gate", [Gate("x", 2), Gate("x", -1), Gate("x", 0, 2), Gate("x", 0, -1), Gate("ry", 1, 1)])
def test_gate_that_does_not_fit_is_refused(gate):
    with pytest.raises(UserError, match="does not fit 2 wires, numbered from 0"):
        ansatz.program(2, [gate])


def test_unknown_ansatz_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown ansatz 'ry_cnt': did you mean 'ry_cnot'\?"):
        ansatz.build(Circuit(ansatz="ry_cnt"), 2)


def test_a_circuit_without_an_angle_is_refused():
    with pytest.raises(UserError, match=r"circuit.gates has no angle, so nothing would be trained: add a gate such as"):
        ansatz.build(Circuit(ansatz="gates", gates=[["h", 0], ["x", 1, 0]]), 2)
