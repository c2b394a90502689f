import pytest

from distqtrl.config.run import Config
from distqtrl.config.sources import preset, with_flags
from distqtrl.errors import UserError
from distqtrl.report.describe import describe
from distqtrl.report.suggest import suggest

MLP = {"kind": "mlp", "hidden": (10, 10, 10), "activation": "none", "output": "raw"}


def test_cartpole_of_qtrl():
    facts = describe(Config.model_validate({"circuit": {"layers": 5}, "mapping": MLP, "policy": {"hidden": (128,)}}))
    assert facts == {
        "environment": "CartPole-v1",
        "policy": "4-128-2 relu, categorical",
        "source": "circuit",
        "qubits": 10,
        "basis_states": 1024,
        "basis_states_used": 898,
        "circuit": "u3_cu3_ring, L = 5",
        "circuit_parameters": 300,
        "source_parameters": 300,
        "mapping_parameters": 351,
        "total_parameters": 651,
        "effective_parameters": 231,
        "training_only_parameters": 4545,  # 4-64-64-1
        "policy_weights": 898,
        "deployed_parameters": 898,
        "compression": 1.379,
        "directions_99": 10,  # of 231: an affine mapping moves all weights along few
        "participation": 3.4,
        "source_share": 0.000195,
        "learning_rate": 0.003,
        "value_learning_rate": 0.003,
    }


def test_the_default_preset_trains_its_circuit_alone():
    facts = describe(preset("cartpole"))
    assert (facts["circuit_parameters"], facts["mapping_parameters"], facts["total_parameters"]) == (128, 0, 128)
    assert facts["source_share"] == 1.0
    assert facts["directions_99"] > 120
    assert facts["compression"] == 7.016


@pytest.mark.parametrize(("name", "trained"), [("cartpole", 6), ("cartpole", 128), ("cartpole", 700), ("hopper", 64)])
def test_what_is_suggested_keeps_to_the_budget_and_moves_in_nearly_as_many_directions(name, trained):
    flags, facts = suggest(preset(name), trained)
    assert trained / 2 <= facts["total_parameters"] <= trained
    assert facts["directions_99"] >= 0.8 * facts["total_parameters"]
    assert describe(with_flags(preset(name), flags)) == facts


@pytest.mark.parametrize("trained", [5, 898])
def test_a_budget_that_makes_no_sense_is_refused(trained):
    with pytest.raises(UserError, match=f"--suggest {trained}: give 6 to 897, fewer than the policy's 898 weights"):
        suggest(preset("cartpole"), trained)


# a 4-2 policy: 10 weights, 3 nodes of 4, 2 qubits
@pytest.mark.parametrize(
    ("source", "qubits", "states", "used", "circuit", "angles", "source_parameters"),
    [
        ("circuit", 2, 4, 3, "ry_cnot, L = 1", 2, 2),
        ("frozen_circuit", 2, 4, 3, "ry_cnot, L = 1", 0, 0),
        ("frozen_random", 0, 4, 3, "none", 0, 0),
        ("free_vector", 0, 4, 3, "none", 0, 4),
        ("uniform", 0, 4, 3, "none", 0, 0),
        ("direct", 0, 0, 0, "none", 0, 10),
    ],
)
def test_every_source(source, qubits, states, used, circuit, angles, source_parameters):
    values = {"circuit": {"ansatz": "ry_cnot", "layers": 1}, "mapping": {"chunk": 4, "hidden": (3,)}}
    facts = describe(Config.model_validate({**values, "generator": {"source": source}, "policy": {"hidden": ()}}))
    mapping_parameters = 0 if source == "direct" else 2 * 3 * 3 + 3 + 3 * 4 + 4  # a graph network
    assert (facts["source"], facts["policy"]) == (source, "4-2 relu, categorical")
    assert (facts["qubits"], facts["basis_states"], facts["basis_states_used"]) == (qubits, states, used)
    assert (facts["circuit"], facts["circuit_parameters"]) == (circuit, angles)
    assert (facts["source_parameters"], facts["mapping_parameters"]) == (source_parameters, mapping_parameters)
    assert facts["total_parameters"] == source_parameters + mapping_parameters
    assert facts["effective_parameters"] == 10  # every weight can move by itself
    assert facts["compression"] == round(10 / facts["total_parameters"], 3)


def test_normalizer_is_deployed_with_the_policy():
    config = Config.model_validate(
        {
            "environment": {"id": "Pendulum-v1"},
            "generator": {"source": "direct"},
            "policy": {"hidden": (5, 4), "activation": "tanh", "normalize_observations": True},
        }
    )
    facts = describe(config)
    assert facts["policy"] == "3-5-4-1 tanh, gaussian"
    assert facts["policy_weights"] == 20 + 24 + 5
    assert facts["deployed_parameters"] == 49 + 3 + 3  # mean and deviation of every observation


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"environment": {"id": "CartPol-v1"}}, r"unknown environment 'CartPol-v1': did you mean 'CartPole-v1'\?"),
        ({"circuit": {"ansatz": "ry"}}, "unknown ansatz 'ry': "),
        ({"qpu": {"backend": "statevec"}}, r"unknown qpu.backend 'statevec': did you mean 'statevector'\?"),
    ],
)
def test_configuration_that_cannot_run_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        describe(Config.model_validate(values))
