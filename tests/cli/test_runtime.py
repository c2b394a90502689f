"""distqtrl train on Qiskit's runtime: in its local testing mode, and on what takes it for a real device."""

import io
import json

import pytest
import qiskit_ibm_runtime
import torch
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from runs import as_words, tiny

import distqtrl

TINY = tiny(
    qpu_backend="runtime",
    qpu_device="fake_manila",
    qpu_shots=50,
    circuit_ansatz="ry_cnot",
    circuit_layers=1,
    train_steps=None,
    algorithm_epochs=1,
)
CIRCUITS = 7  # of an update: 3 angles, twice, and the policy's own


def words(run, **changes):
    flags = {name.replace("_", ".", 1): value for name, value in changes.items()}
    return ["train", "cartpole", "--run", run, *as_words(TINY, flags)]


def updates(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def real(monkeypatch):
    """A saved account with a backend, ibm_test."""

    class Service:
        def __init__(self, **options):
            pass

        def backend(self, name):
            return FakeManilaV2()

    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", Service)


def test_a_run_is_predicted_counted_and_resumed_bitwise(command, tmp_path):
    code, out, _ = command(*words(tmp_path / "whole", train_updates=2))
    assert code == 0
    assert f"QPU runtime fake_manila, 50 shots, gradient parameter-shift: {CIRCUITS} circuits, 350 shots" in out
    assert "14 circuits, 700 shots, 0.2 s of QPU time in the whole budget of 2 updates" in out
    assert [(line["circuits"], line["shots"]) for line in updates(tmp_path / "whole")] == [(7, 350), (14, 700)]
    assert command(*words(tmp_path / "parts", train_updates=1))[0] == 0
    assert command("train", "--resume", tmp_path / "parts", "--train.updates", 2)[0] == 0
    whole, parts = (distqtrl.load(tmp_path / name) for name in ("whole", "parts"))
    assert torch.equal(whole.w_M, parts.w_M)
    assert updates(tmp_path / "whole")[1]["qpu_s"] == updates(tmp_path / "parts")[1]["qpu_s"]


def test_a_lost_job_ends_in_a_checkpoint(command, tmp_path, monkeypatch):
    run = qiskit_ibm_runtime.SamplerV2.run
    sent = []

    def lost(self, pubs, **options):
        sent.append(pubs)
        if len(sent) > 3:
            raise ConnectionError("the service is gone")
        return run(self, pubs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(qiskit_ibm_runtime.SamplerV2, "run", lost)
        options = '{"tries": 2, "backoff_s": 0}'
        code, _, err = command(*words(tmp_path / "run", train_updates=2, qpu_options=options))
    assert code == 1
    assert "the service is gone after 2 tries; 1 updates are saved, resume with: distqtrl train --resume" in err
    assert command("train", "--resume", tmp_path / "run")[0] == 0
    assert len(updates(tmp_path / "run")) == 2


def test_a_real_device_is_asked_for_first(command, tmp_path, monkeypatch, real):
    asked = words(tmp_path / "run", train_updates=1, qpu_device="ibm_test")
    code, _, err = command(*asked)
    assert code == 2
    assert err.startswith(
        "distqtrl: nothing was sent: QPU runtime ibm_test, 50 shots, gradient parameter-shift: 7 circ"
    )
    assert err.rstrip().endswith("confirm it at a terminal, with --yes, or with yes = True of distqtrl.train")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    for answer, code in (("n\n", 2), ("", 2), ("y\n", 0)):
        terminal = io.StringIO(answer)
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", terminal)
        given, _, err = command(*asked)
        assert (given, "350 shots" in err, "send this? [y/N]" in err) == (code, True, True)
    monkeypatch.setattr("sys.stdin", None)
    code, _, err = command(*words(tmp_path / "sure", train_updates=1, qpu_device="ibm_test"), "--yes")
    assert (code, "send this" in err) == (0, False)


def test_describe_says_what_will_be_asked(command):
    flags = as_words(TINY, {"train.updates": 3})
    facts = json.loads(command("describe", "cartpole", "--json", *flags)[1])
    per_update, whole = ([facts[name + when] for name in ("circuits", "shots")] for when in ("_per_update", ""))
    assert (per_update, whole) == ([7, 350], [21, 1050])
    assert 0.25e-3 * 350 < facts["qpu_s_per_update"] < 0.3e-3 * 350


def test_a_batch_script_says_yes_when_it_is_told_to(command):
    asked = [
        "slurm",
        "cartpole",
        "--dry-run",
        "--launcher",
        "srun",
        "--qpu.backend",
        "runtime",
        "--qpu.device",
        "ibm_x",
    ]
    for words, says in (([], False), (["--yes"], True)):
        code, out, _ = command(*asked, *words)
        assert (code, " --yes" in out) == (0, says)
