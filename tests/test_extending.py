"""CONTRIBUTING's promise: one of a kind is a module, here a class or function, and one entry in one table."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from runs import as_words, tiny
from torch import nn

from distqtrl.circuit import ansatz, qpu
from distqtrl.circuit.ansatz import Gate
from distqtrl.circuit.statevector import StateVector
from distqtrl.cli.main import main
from distqtrl.doctor import gradients
from distqtrl.export import targets
from distqtrl.export.check import EQUAL, Check, Comparison, equal
from distqtrl.files.schema import Record
from distqtrl.mapping import model
from distqtrl.quantize import blocks
from distqtrl.quantize import program as programs

ROOT = Path(__file__).parents[1]
TINY = tiny(circuit_layers=1, algorithm_value_hidden=4, algorithm_rollout_steps=8, train_updates=2, train_steps=None)
QUICK = ["--vectors", "200", "--episodes", "1"]
NAMES = {"circuit.ansatz": "ladder", "qpu.backend": "counted", "mapping.kind": "affine", "rollout.precision": "tenths"}
TINY_RUN = ["cartpole", *as_words(TINY)]
NAMED = as_words(NAMES)


# ---- one of each kind


def ladder(num_qubits, layers):
    """An ansatz: RY on every wire, then a controlled RX up the wires."""
    layer = [Gate("ry", wire) for wire in range(num_qubits)]
    return (layer + [Gate("rx", wire + 1, wire) for wire in range(num_qubits - 1)]) * layers


class Counted(StateVector):
    """A backend: our exact engine, which counts its circuits."""

    circuits = 0

    def differentiable(self, theta_P, method):
        Counted.circuits += 1
        return super().differentiable(theta_P, method)


def affine(shape):
    """A mapping's network."""
    return nn.Linear(shape.num_qubits + 1, shape.settings.chunk)


def tenths(weight_NK, pad):
    """A number format: one decimal."""
    return np.round(weight_NK * 10) / np.float32(10)


class Whole(Record):
    operations: int


def write(folder, program, options):
    """A target: the program as JSON in another file."""
    (folder / "policy.txt").write_text(programs.dumps(program))
    return {"whole": {"operations": len(program.ops)}}


def compared(name, q):
    found = programs.loads((q.place / "policy.txt").read_text())
    assert len(found.ops) == q.facts["whole"]["operations"]
    equal(found.run(q.x_BO), q.y_BA)
    return Check(name, EQUAL, len(q.x_BO), "read again")


TEXT = targets.Target(
    write=write,
    files=("policy.txt",),
    readme="`policy.txt`: the program once more.",
    checks={"text": Comparison(("policy.txt",), compared, proves=("policy.txt",))},
    parts=("whole",),
    part=Whole,
    page=lambda facts: ["## Text", "", f"{facts['whole']['operations']} operations."],
)


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ansatz.ANSATZE, "ladder", ladder)
        patch.setitem(qpu.BACKENDS, "counted", Counted)
        patch.setitem(model.KINDS, "affine", model.Kind(affine, whole=False, floats=lambda n, width: width))
        patch.setitem(blocks.FORMATS, "tenths", tenths)
        patch.setitem(targets.TARGETS, "text", TEXT)
        yield


@pytest.fixture(scope="module")
def trained(tables, tmp_path_factory):
    """A run that trains with a new ansatz, backend, mapping and number format."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *TINY_RUN, *NAMED, "--run", str(run)]) == 0
    return run


# ---- used from end to end


@pytest.mark.xdist_group("extending")
def test_a_run_is_trained_and_described(trained, capfd):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [0, 1]
    assert Counted.circuits > 2
    assert main(["describe", str(trained), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    n = facts["qubits"]
    assert facts["circuit"] == "ladder, L = 1"
    assert facts["circuit_parameters"] == 2 * n - 1
    assert facts["mapping_parameters"] == (n + 1) * 4 + 4
    assert main(["slurm", *TINY_RUN, *NAMED, "--dry-run", "--launcher", "srun"]) == 0
    assert "--circuit.ansatz ladder" in capfd.readouterr().out


@pytest.mark.xdist_group("extending")
def test_the_doctor_compares_every_backend(tables):
    assert {"backend": "counted"} in gradients.devices()
    assert {"backend": "pennylane", "device": "default.mixed"} in gradients.devices()


@pytest.mark.xdist_group("extending")
def test_a_target_is_exported_and_proven(trained, tmp_path, capfd):
    folder = tmp_path / "out"
    assert main(["export", str(trained), "-o", str(folder), "--target", "c,text", *QUICK]) == 0
    about, page = json.loads((folder / "manifest.json").read_text()), (folder / "README.md").read_text()
    assert about["targets"] == ["c", "text"]
    assert about["text"] == {"whole": {"operations": len(about["formats"]["operations"])}}
    assert "`policy.txt`: equal on 200 vectors (text)" in page
    assert "* `policy.txt`: the program once more." in page
    assert f"## Text\n\n{about['text']['whole']['operations']} operations." in page
    capfd.readouterr()
    assert main(["verify", str(folder), "--target", "text", *QUICK]) == 0
    assert re.search(r"^text +equal 200 vectors: read again$", capfd.readouterr().out, re.MULTILINE)
    text = (folder / "policy.txt").read_text()
    (folder / "policy.txt").write_text(text + "\n")
    assert main(["verify", str(folder), "--target", "text", *QUICK]) == 1
    assert "policy.txt is not as exported, so it was not run" in capfd.readouterr().out
    for told, says in (({"whole": {"operations": "3"}}, "whole.operations = '3'"), ({}, "text does not describe")):
        (folder / "manifest.json").write_text(json.dumps({**about, "text": told}))
        assert main(["verify", str(folder), *QUICK]) == 2
        assert says in capfd.readouterr().err


@pytest.mark.parametrize("command", [["train"], ["describe"], ["slurm", "--dry-run"]], ids=lambda words: words[0])
def test_names_that_no_table_holds_are_refused_alike(command, tmp_path, monkeypatch, capfd):
    """Also where the run would not use them: with direct weights there is no circuit and no mapping."""
    monkeypatch.chdir(tmp_path)
    kept = {"circuit.ansatz": "ry_cnt", "qpu.backend": "aers", "mapping.kind": "gn"}
    kept |= {"rollout.precision": "mxfp", "adapter.precision": "int77"}
    for key, name in kept.items():
        for source in ("circuit", "direct"):
            words = [command[0], *TINY_RUN, *command[1:], f"--{key}", name, "--generator.source", source]
            assert main(words) == 2, words
            (line,) = capfd.readouterr().err.splitlines()
            assert f"'{name}': did you mean" in line
    assert list(tmp_path.iterdir()) == []


def test_contributing_names_what_is_there():
    """Every path and every table in CONTRIBUTING.md."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"`((?:distqtrl|tests|docs|benchmarks)/[\w./]*)`", page))
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    tables = re.findall(r"`([A-Z_]+)` in `(distqtrl/[\w/]+\.py)`", page)
    assert len(tables) >= 5
    for name, path in tables:
        assert re.search(rf"^{name}\b", (ROOT / path).read_text(), re.MULTILINE), (name, path)
