"""R ranks x B environments train as 1 rank x R*B environments do, and what the kinds of aggregation mean."""

import itertools
import json
from pathlib import Path

import numpy as np
from runs import tiny

from distqtrl.files import tensors as tensorfile
from distqtrl.record.checkpoint import FORMAT

PROGRAM = Path(__file__).parent / "programs" / "gradients.py"
AGENTS = {
    "environment.id": "distqtrl.environment.coin_game/parallel_env",
    "environment.max_episode_steps": "7",
    "policy.normalize_observations": "true",
    "algorithm.minibatches": "2",
}
SAC = {
    "environment.id": "Pendulum-v1",
    "policy.normalize_observations": "true",
    "algorithm.name": "sac",
    "algorithm.learning_starts": "0",
    "algorithm.batch_size": "20",  # not a multiple of the environments
}
ALGORITHMS = {
    "ppo": {
        "algorithm.epochs": "2",
        "algorithm.minibatches": "2",
        "algorithm.entropy": "0.01",
        "policy.normalize_observations": "true",
    },
    "reinforce": {"algorithm.name": "reinforce"},
    "sac": SAC,
    "sac-layer-norm": {**SAC, "algorithm.critic_norm": "layer_norm", "algorithm.adam_beta1": "0.5"},
    "sac-discrete": {
        "algorithm.name": "sac",
        "algorithm.learning_starts": "0",
        "algorithm.batch_size": "20",
    },
    "integers": {
        "quantize.aware": "true",
        "quantize.core_bits": "3",
        "quantize.warmup": "0",  # in it scales follow the mean of the ranks' percentiles, which depends on the ranks
        "algorithm.epochs": "3",
    },
    "agents": {**AGENTS, "agents.sharing": "shared", "agents.critic": "centralised"},
    "agents-independent": {**AGENTS, "agents.sharing": "independent"},
    "agents-shared-circuit": {**AGENTS, "agents.sharing": "shared_circuit"},
}


def updated(forked_ranks, ranks, folder, cases):
    """The arrays that the program leaves behind at this number of ranks."""
    folder.mkdir()
    cases = {name: (updates, {**tiny(), **flags}) for name, (updates, flags) in cases.items()}
    (folder / "cases.json").write_text(json.dumps(cases))
    code, _, err = forked_ranks(ranks, [PROGRAM, folder / "results.npz", folder / "cases.json"])
    assert code == 0, err
    with np.load(folder / "results.npz") as results:
        return dict(results)


def test_ranks_times_environments_is_what_counts(forked_ranks, tmp_path):
    cases = {
        f"{name}-{precision}-{reduction}": (
            1,
            {**ALGORITHMS[name], "train.precision": precision, "allreduce.reduction": reduction},
        )
        for name, (precision, reduction) in itertools.product(
            ALGORITHMS, [("float64", "ordered"), ("float64", "fast"), ("float32", "ordered")]
        )
        if not name.startswith("sac")
        or precision == "float64"  # SAC acts between its steps, so rounding moves its observations
    }
    one, *more = (updated(forked_ranks, ranks, tmp_path / str(ranks), cases) for ranks in (1, 2, 4))
    for several, name in itertools.product(more, cases):
        start, expected = one[f"{name}/before"][0, 0], one[f"{name}/agreed"][0, 0]
        assert (start != expected).mean() > 0.9, name
        after_RN = several[f"{name}/agreed"][0]
        assert (after_RN == after_RN[0]).all(), f"{name}: replicas differ"
        np.testing.assert_allclose(several[f"{name}/normalizer"], one[f"{name}/normalizer"], rtol=1e-12)
        norm, expected_norm = several[f"{name}/norm"], one[f"{name}/norm"]
        if "float64" in name:
            np.testing.assert_allclose(after_RN[0], expected, rtol=1e-6, atol=1e-12, err_msg=name)
            np.testing.assert_allclose(norm, expected_norm, rtol=1e-9)
        difference = np.linalg.norm(after_RN[0] - expected) / np.linalg.norm(expected - start)
        print(f"{len(after_RN)} ranks, {name}: difference / change of parameters {difference:.1e}")
        assert difference < (1e-9 if "float64" in name else 1e-4), name  # measured: 2e-15 and 5e-7
        np.testing.assert_allclose(norm, expected_norm, rtol=1e-4)
    for several, name in itertools.product(more, ALGORITHMS):
        ordered, fast = (several[f"{name}-float64-{reduction}/agreed"] for reduction in ("ordered", "fast"))
        np.testing.assert_allclose(fast, ordered, rtol=1e-12, atol=1e-15)


def test_batches_own_statistics_leave_ranks_equal(forked_ranks, tmp_path):
    """CrossQ's critics normalise by each rank's share of the batch: other gradients on other ranks, the same on all."""
    flags = {"algorithm.critic_norm": "batch_renorm", "algorithm.renorm_warmup": "4", "train.precision": "float64"}
    r = updated(forked_ranks, 2, tmp_path / "2", {"crossq": (2, {**SAC, **flags})})
    assert (r["crossq/stepped"][:, 0] == r["crossq/stepped"][:, 1]).all()
    assert (r["crossq/stepped"][1] != r["crossq/before"][0]).mean() > 0.9


def test_aggregation_on_two_ranks(forked_ranks, tmp_path):
    common = {"train.precision": "float64", "algorithm.epochs": "1", "algorithm.max_grad_norm": "1e9"}
    averaging = {"train.precision": "float64", "allreduce.aggregation": "average"}
    cases = {
        "mean": (1, common),
        "sum": (1, {**common, "allreduce.aggregation": "sum"}),
        "every1": (2, averaging),
        "every2": (2, {**averaging, "allreduce.average_every": "2"}),
    }
    r = updated(forked_ranks, 2, tmp_path / "2", cases)

    np.testing.assert_allclose(r["sum/norm"], 2 * r["mean/norm"], rtol=1e-12)

    for update, equal in ((0, False), (1, True)):
        stepped, agreed = r["every2/stepped"][update], r["every2/agreed"][update]
        assert (stepped[0] != stepped[1]).mean() > 0.9
        expected = np.broadcast_to(stepped.mean(axis=0), stepped.shape) if equal else stepped
        np.testing.assert_array_equal(agreed, expected)
        np.testing.assert_array_equal(r["every1/agreed"][update, 0], r["every1/agreed"][update, 1])
        np.testing.assert_array_equal(r["every1/agreed"][update, 0], r["every1/stepped"][update].mean(axis=0))

        path = tmp_path / "2" / "every2" / "checkpoints" / f"update-{update + 1:06d}.safetensors"
        _, tensors = tensorfile.read(path, FORMAT, "")
        trained = [
            name
            for name in tensors
            if name.startswith(("rank0/learner/policy0/generator.theta", "rank0/learner/policy0/value"))
        ]
        assert len(trained) > 4
        for name in trained:
            other = name.replace("rank0", "rank1")
            assert np.array_equal(tensors[name], tensors[other]) == equal, f"{name} after update {update}"
