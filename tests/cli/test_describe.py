"""distqtrl describe, of presets and of runs."""

import json


def test_describe_a_preset_and_a_run(trained, command):
    code, out, _ = command("describe", "cartpole", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["policy_weights"] == 898
    assert facts["total_parameters"] == facts["circuit_parameters"] + facts["mapping_parameters"]
    assert facts["effective_parameters"] <= facts["total_parameters"]
    assert "policy weights" in command("describe", trained)[1]
