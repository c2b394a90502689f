import pytest

from distqtrl.config.run import Config
from distqtrl.errors import UserError
from distqtrl.report.describe import describe

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
    }


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
