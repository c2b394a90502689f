"""distqtrl describe, of presets and of runs."""

import json

import pytest


def test_describe_a_preset_and_a_run(trained, command):
    code, out, _ = command("describe", "cartpole", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["policy_weights"] == 898
    assert facts["total_parameters"] == facts["circuit_parameters"] + facts["mapping_parameters"]
    assert facts["effective_parameters"] <= facts["total_parameters"]
    assert "policy weights" in command("describe", trained)[1]


def test_learning_rates_on_numbers_of_ranks(command):
    words = ("--ranks", "1,4", "--algorithm.rate_scaling", "sqrt")
    code, out, _ = command("describe", "qtrl-cartpole", "--json", *words)
    facts = json.loads(out)
    assert (code, facts["learning_rate"]) == (0, 0.001)
    assert facts["ranks"] == {
        "1": {"learning_rate": 0.001, "value_learning_rate": 0.003},
        "4": {"learning_rate": 0.002, "value_learning_rate": 0.006},
    }
    assert "4 ranks                   learning rate 0.002" in command("describe", "qtrl-cartpole", *words)[1]


@pytest.mark.parametrize("text", ["0", "0-3", "x", "2,2", "2000000", ""])
def test_what_is_no_number_of_ranks(command, text):
    code, _, err = command("describe", "cartpole", "--ranks", text)
    assert code == 2
    assert err.count("\n") == 1


def test_the_speed_up_that_a_run_predicts(trained, command):
    run, metrics = trained, [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]

    def told(*shares):
        lines = [{**metrics[0], "update": i, "ranks": 2, "batch_share": share} for i, share in enumerate(shares)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return command("describe", run, "--json", "--ranks", "1,8")

    code, out, _ = told(None, None, 0.5, 0.1, 0.4, None)  # 2 ranks, so r = 2 / share: 4, 20, 5
    assert code == 0
    assert [told["predicted_speedup"] for told in json.loads(out)["ranks"].values()] == [1, round(6 / (1 + 5 / 8), 3)]
    code, out, err = told(None, None)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{run} has no estimate of its noise scale" in err


def test_a_file_is_described_as_it_is_trained(command, tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "cartpole"\n[circuit]\nlayers = 15\n')
    code, ours, _ = command("describe", "--config", tmp_path / "mine.toml", "--json")
    preset = json.loads(command("describe", "cartpole", "--circuit.layers", "15", "--json")[1])
    assert (code, json.loads(ours)) == (0, {key: value for key, value in preset.items() if key != "preset"})
