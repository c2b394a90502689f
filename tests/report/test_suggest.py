"""Settings for a budget of trained numbers, and the presets that are made of them."""

import pytest

from distqtrl.config.sources import preset, with_flags
from distqtrl.report import suggest


@pytest.mark.parametrize(
    ("name", "trained", "num_weights"),
    [
        ("cartpole", 128, 898),
        ("cartpole-large", 512, 67_586),
        ("hopper-generated", 512, 5_123),
        ("halfcheetah-generated", 512, 5_702),
    ],
)
def test_presets_are_what_is_suggested_for_their_budget(name, trained, num_weights):
    config = preset(name)
    assert with_flags(config, suggest.recipe(trained, num_weights)) == config


@pytest.mark.parametrize("trained", [6, 7, 16, 100, 128, 512, 1024])
def test_a_circuit_has_at_most_so_many_angles_and_twice_as_many_states(trained):
    made = suggest.circuit(trained)
    qubits, layers = int(made["circuit.qubits"]), int(made["circuit.layers"])
    assert trained - qubits < qubits * layers <= trained
    assert 2**qubits >= 2 * qubits * layers
