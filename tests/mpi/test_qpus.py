"""QPUs of every family train under mpirun; what they were asked for is what was predicted; a failure loses nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from runs import as_words, tiny

from distqtrl.files import tensors as tensorfile
from distqtrl.record.checkpoint import FORMAT

PROGRAMS = Path(__file__).parent / "programs"
TINY = as_words(
    tiny(
        mapping_chunk=8,
        circuit_layers=1,
        algorithm_epochs=2,
        evaluate_every=2,
        evaluate_validation_episodes=2,
        evaluate_episodes=3,
    )
)
NOISE = {"depolarizing": {"one_qubit": 0.002, "two_qubit": 0.02}, "readout": {"0to1": 0.02, "1to0": 0.04}}


def training(folder, ranks, updates, *flags):
    steps = str(updates * 16 * 2 * ranks)
    return ["train", "cartpole", *TINY, "--train.directory", str(folder), "--train.steps", steps, *flags]


def only(folder):
    (run,) = folder.iterdir()
    return run


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_shared_shifts_give_the_same_gradient(forked_ranks, tmp_path):
    found = {}
    for ranks in (1, 2, 3):
        path = tmp_path / f"{ranks}.npz"
        code, _, err = forked_ranks(ranks, [PROGRAMS / "shifted.py", path])
        assert code == 0, err
        with np.load(path) as results:
            found[ranks] = dict(results)
    total = found[1]["exact/circuits"].sum()
    for ranks, results in found.items():
        for name in ("exact", "shots", "torch"):
            np.testing.assert_allclose(results[name], found[1][name], rtol=0, atol=1e-10)
            circuits_R = results[f"{name}/circuits"]
            assert circuits_R.sum() == total, f"{ranks} ranks"
            assert circuits_R.max() - circuits_R.min() <= 1
        np.testing.assert_allclose(results["exact"], results["adjoint"], rtol=0, atol=1e-10)
        assert abs(results["shots"] - results["adjoint"]).max() > 1e-3


FAMILIES = {
    "lightning": ["--qpu.backend", "pennylane", "--qpu.device", "lightning.qubit"],
    "torch": ["--qpu.backend", "torch"],
    "shots": ["--qpu.shots", "100", "--qpu.shift", "distributed"],
    "spsa": ["--qpu.shots", "100", "--qpu.gradient", "spsa", "--qpu.spsa_samples", "2"],
    "noise": ["--qpu.backend", "aer", "--qpu.shots", "4096", "--qpu.noise", "noise.json"],
    "fake": ["--qpu.backend", "aer", "--qpu.noise", "FakeLagosV2", "--qpu.gradient", "spsa"],
    "different": ["--qpu.per_rank", '[{"shots": 100, "shot_us": 1000}, {"backend": "torch", "gradient": "spsa"}]'],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_and_its_ledger_is_the_prediction(family, forked_ranks, tmp_path):
    (tmp_path / "noise.json").write_text(json.dumps(NOISE))
    flags = [str(tmp_path / flag) if flag.endswith(".json") else flag for flag in FAMILIES[family]]
    code, out, err = forked_ranks(2, ["-m", "distqtrl", *training(tmp_path / "runs", 2, 3, *flags)])
    assert code == 0, out + err
    run = only(tmp_path / "runs")
    said = re.search(r"; ([\d,]+) circuits(?:, ([\d,]+) shots, ([\d,.]+) s of QPU time)? in the whole budget of 3", out)
    circuits, shots, seconds = (float((number or "0").replace(",", "")) for number in said.groups())
    last = metrics(run)[-1]
    assert (last["circuits"], last["shots"]) == (circuits, shots)
    assert last["qpu_s"] == pytest.approx(seconds, abs=0.051)
    assert last["circuits"] > 0
    assert json.loads((run / "result.json").read_text())["status"] == "complete"


def test_a_device_that_fails_loses_nothing(forked_ranks, tmp_path):
    """Rank 1's device fails in the middle of an update; the run resumes to what it would have been."""
    flags = ["--qpu.backend", "aer", "--qpu.shots", "64", "--qpu.gradient", "spsa", "--train.checkpoint_every", "100"]
    code, out, err = forked_ranks(2, ["-m", "distqtrl", *training(tmp_path / "whole", 2, 4, *flags)])
    assert code == 0, out + err

    argv = [PROGRAMS / "failing.py", "9", *training(tmp_path / "cut", 2, 4, *flags)]
    code, _, err = forked_ranks(2, argv)
    assert code == 1
    run = only(tmp_path / "cut")
    (line,) = [line for line in err.splitlines() if line.startswith("distqtrl: ")]
    assert "rank 1: qpu.backend aer failed: RuntimeError: calibration lost" in line
    assert f"2 updates are saved, resume with: distqtrl train --resume {run} on 2 ranks" in line

    code, out, err = forked_ranks(2, ["-m", "distqtrl", "train", "--resume", str(run)])
    assert code == 0, out + err
    name = "checkpoints/update-000004.safetensors"
    ours, expected = (tensorfile.read(r / name, FORMAT, "")[1] for r in (run, only(tmp_path / "whole")))
    assert ours.keys() == expected.keys()
    assert all(ours[key].tobytes() == expected[key].tobytes() for key in ours)
    assert [m["circuits"] for m in metrics(run)] == [m["circuits"] for m in metrics(only(tmp_path / "whole"))]
