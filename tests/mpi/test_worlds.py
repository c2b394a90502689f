"""Commands that do not train need no world: one process answers, in an allocation and under mpirun, and all end."""

import json
import os
import subprocess
import sys

import pytest

ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "4"}


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["describe", "cartpole", "--json"], 0, '{"preset": '),
        (["slurm", "cartpole", "--dry-run"], 0, "#!/usr/bin/env bash"),
        (["train", "cartpole", "--print-config"], 0, "{"),
        (["train", "--help"], 0, "usage: "),
        (["evaluate", "nowhere"], 2, "distqtrl: cannot read nowhere"),
        (["describe", "cartpol"], 2, "distqtrl: unknown preset 'cartpol'"),
        (["evaluate", "nowhere", "--seeds"], 2, "distqtrl: unknown key 'seeds'"),
    ],
    ids=str,
)
def test_inside_an_allocation(argv, code, said):
    """As under salloc or srun --pty bash: SLURM's variables, and no launcher."""
    answers = []
    for rank in ("0", "1"):
        env = {**os.environ, **ALLOCATION, "SLURM_PROCID": rank}
        command = [sys.executable, "-m", "distqtrl", *argv]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode in (code, 0 if rank == "1" else code)
        answers.append(done.stdout + done.stderr)
    assert answers[0].startswith(said)
    assert answers[1] == ""


def test_once_under_mpirun(mpirun):
    code, out, err = mpirun(3, ["-m", "distqtrl", "describe", "cartpole", "--json"])
    assert (code, err) == (0, "")
    assert json.loads(out)["qubits"] == 8
    code, _, err = mpirun(3, ["-m", "distqtrl", "report", "nowhere"])
    assert code == 2
    assert sum(line.startswith("distqtrl: ") for line in err.splitlines()) == 1
    code, _, err = mpirun(3, ["-m", "distqtrl", "train", "cartpole", "--circuit.layer", "3"])
    assert code == 2
    assert sum(line.startswith("distqtrl: unknown key 'circuit.layer'") for line in err.splitlines()) == 1


def test_doctor_keeps_its_world(mpirun):
    code, out, _ = mpirun(2, ["-m", "distqtrl", "doctor", "--json"])
    assert (code, len(json.loads(out)["ranks"])) == (0, 2)
