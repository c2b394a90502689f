"""Fewer ranks, other ranks, several replicas in one process: the same environments and samples go on."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from runs import as_words, tiny

from distqtrl.policy import policy_file

PROGRAMS = Path(__file__).parent / "programs"
TINY = ["train", "cartpole"]
TINY += as_words(tiny(algorithm_epochs=2, evaluate_episodes=4, train_steps=None, allreduce_check_every=1))
SAC = """--environment.id Pendulum-v1 --environment.max_episode_steps 16 --algorithm.name sac --algorithm.batch_size 10
    --algorithm.learning_starts 100 --policy.normalize_observations true"""
COUNTED = ("update", "env_steps", "episodes", "return_mean")
ULFM = ("--with-ft", "ulfm")


def rows(run, *keys):
    return [[json.loads(line)[key] for key in keys] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run):
    return policy_file.load(run / "policy.safetensors").w_M.numpy()


def said(err):
    return [line for line in err.splitlines() if line.startswith("distqtrl: ")]


@pytest.mark.parametrize("more", ["", SAC], ids=["ppo", "sac"])
def test_another_number_of_ranks_goes_on_with_the_same_samples(forked_ranks, tmp_path, more):
    stopped, event = tmp_path / "stopped", tmp_path / "event"
    words = ["--run", str(stopped), "--train.updates", "6", "--train.precision", "float64", *more.split()]
    spec = {"argv": [*TINY, *words], "pause": 2, "event": str(event)}
    code, _, err = forked_ranks(2, [PROGRAMS / "several.py", json.dumps([spec])], when=[(event, signal.SIGUSR1)])
    assert code == 75, err
    for ranks in (1, 3):
        run = tmp_path / str(ranks)
        shutil.copytree(stopped, run)
        code, _, err = forked_ranks(ranks, ["-m", "distqtrl", "train", "--resume", run])
        assert code == 0, err
        for row, expected in zip(rows(run, *COUNTED), rows(tmp_path / "1", *COUNTED), strict=True):
            assert row == pytest.approx(expected, rel=1e-9)
        np.testing.assert_allclose(weights(run), weights(tmp_path / "1"), rtol=1e-9, atol=1e-12)
    assert [ranks for (ranks,) in rows(tmp_path / "3", "ranks")] == [2, 2, 2, 3, 3, 3]


def test_lost_ranks_are_left_behind(openmpi, tmp_path):
    """Rank 2 in the middle of update 2, then rank 0, which writes the run directory, in update 5 (2 steps each)."""
    run = tmp_path / "run"
    words = ["--run", run, "--train.updates", "8", "--allreduce.lost_rank", "shrink"]
    argv = [PROGRAMS / "losing.py", json.dumps({"2": 5, "0": 11}), *TINY, *words]
    code, _, err = openmpi(4, argv, options=ULFM)
    assert code == 0, err
    assert "lost rank 2: 3 ranks and 6 environments go on from update 2" in err
    assert "lost rank 0, 2: 2 ranks and 4 environments go on from update 5" in err
    environments = [8, 8, 6, 6, 6, 4, 4, 4]
    steps = np.cumsum(environments) * 16
    assert rows(run, "update", "ranks", "env_steps") == [
        [update, n // 2, s] for update, (n, s) in enumerate(zip(environments, steps.tolist(), strict=True))
    ]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("lost_ranks") for line in lines] == [None] * 2 + [[2]] * 3 + [[0, 2]] * 3
    result = json.loads((run / "result.json").read_text())
    assert (result["ranks"], result["lost_ranks"]) == (2, [0, 2])


def test_without_ulfm_a_lost_rank_cannot_be_left_behind(forked_ranks, tmp_path):
    words = ["--run", tmp_path / "run", "--allreduce.lost_rank", "shrink", "--train.updates", "1"]
    code, _, err = forked_ranks(2, ["-m", "distqtrl", *TINY, *words])
    assert code == 2
    (line,) = said(err)
    assert "allreduce.lost_rank = shrink needs Open MPI 5 and mpirun --with-ft ulfm, this is MPICH" in line


def test_replicas_in_one_process_are_ranks(forked_ranks, tmp_path):
    words = ["--train.updates", "3", "--qpu.backend", "torch", "--qpu.replicas", "2", "--allreduce.reduction", "tree"]
    code, out, err = forked_ranks(2, ["-m", "distqtrl", *TINY, "--run", tmp_path / "2x2", *words])
    assert code == 0, err
    assert "2 replicas per rank, circuits as one batch" in out
    words[words.index("--qpu.replicas") + 1] = "1"
    code, _, err = forked_ranks(4, ["-m", "distqtrl", *TINY, "--run", tmp_path / "4", *words])
    assert code == 0, err
    policies = [(tmp_path / run / "policy.safetensors").read_bytes() for run in ("2x2", "4")]
    assert policies[0] == policies[1]
    keys = (*COUNTED, "ranks", "gradient_norm", "circuits", "policy_loss")
    assert rows(tmp_path / "2x2", *keys) == rows(tmp_path / "4", *keys)


def test_a_replica_that_fails_ends_the_others(forked_ranks, tmp_path):
    """Rank 1 is the second replica of the first process."""
    kwargs = json.dumps({"fault": "exception"})
    flags = ["--environment.id", "broken:Broken-v0", "--environment.kwargs", kwargs, "--qpu.replicas", "2"]
    env = {"PYTHONPATH": str(PROGRAMS), "EVENT": str(tmp_path / "event")}
    argv = ["-m", "distqtrl", *TINY, *flags, "--train.updates", "9", "--run", tmp_path / "run"]
    code, _, err = forked_ranks(2, argv, env=env, when=[(tmp_path / "event", None)])
    assert code == 1
    assert any("RuntimeError: the motor is on fire" in line for line in said(err))


def test_two_mpis_train_bit_for_bit_the_same(forked_ranks, openmpi, tmp_path):
    for name, launch in (("mpich", forked_ranks), ("openmpi", openmpi)):
        runs = []
        for reduction in ("ordered", "tree"):
            words = ["--run", str(tmp_path / f"{name}-{reduction}"), "--allreduce.reduction", reduction]
            runs.append({"argv": [*TINY, "--train.updates", "3", *words]})
        code, _, err = launch(3, [PROGRAMS / "several.py", json.dumps(runs)])
        assert code == 0, err
    for reduction in ("ordered", "tree"):
        mpich, other = (tmp_path / f"{name}-{reduction}" / "policy.safetensors" for name in ("mpich", "openmpi"))
        assert mpich.read_bytes() == other.read_bytes()
