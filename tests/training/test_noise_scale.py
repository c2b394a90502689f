"""The noise scale of a run is that of its ranks' own gradients, costs no message, and is told everywhere."""

import json

import numpy as np
import pytest
from runs import as_words, tiny, trained

from distqtrl.algorithm.noise_scale import FACTS, terms
from distqtrl.allreduce import threads
from distqtrl.allreduce.communicator import Serial
from distqtrl.allreduce.rendezvous import Rendezvous
from distqtrl.config.sources import preset, with_flags
from distqtrl.training import step, updates
from distqtrl.training.build import prepare

DIRECT = {"generator.source": "direct"}
SAC = {
    **{"environment.id": "Pendulum-v1", "environment.max_episode_steps": 9, "algorithm.name": "sac"},
    **{"algorithm.learning_starts": 0, "algorithm.batch_size": 14},
}
CASES = {  # flags; reductions of an update, that of its rollout included; the batches of three ranks
    "ppo": ({"algorithm.epochs": 2, "algorithm.minibatches": 2}, 5, (16, 16, 16)),
    "reinforce": ({"algorithm.name": "reinforce", "algorithm.rollout": "episodes"}, 2, (2, 2, 2)),
    "sac": (SAC, 33, (6, 4, 4)),
}
AROUND = 2  # messages of an update beside: the QPUs' ledgers, and how long everyone waited


class Counting(Serial):
    """Counts how often ranks speak."""

    asked = 0

    def allgather(self, x):
        self.asked += 1
        return super().allgather(x)


@pytest.fixture
def addends(monkeypatch):
    """What every rank hands to the reductions of steps: rank -> (where, vector), in order."""
    seen, plain = {0: [], 1: [], 2: []}, step.reduced

    def reduced(config, comm, local_N, where, named):
        seen[comm.rank].append((where, local_N.copy()))
        return plain(config, comm, local_N, where, named)

    monkeypatch.setattr(step, "reduced", reduced)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_ranks_and_the_formula_agree_without_a_message_more(addends, name):
    flags, reductions, batch_R = CASES[name]
    config = with_flags(preset("cartpole"), tiny() | {key: str(x) for key, x in (DIRECT | flags).items()})
    process, meet = Counting(), Rendezvous(3)
    runs = [prepare(config, member) for member in threads.members(process, meet)]
    told = threads.each(runs, lambda run: updates.update(run, [])[0], [meet])
    assert process.asked == reductions + AROUND
    assert all(line[key] == told[0][key] for line in told for key in FACTS)

    num, total = runs[0].learner.generator.counts()["total"], sum(batch_R)
    of_policy = [i for i, (where, _) in enumerate(addends[0]) if "critics" not in where]
    found = []
    for i in of_policy[::2] if name == "sac" else of_policy[:1]:  # SAC: two steps on one batch
        addend_RN = np.array([addends[rank][i][1][:num] for rank in range(3)])
        squares = sum(b * np.sum((row * total / b) ** 2) for b, row in zip(batch_R, addend_RN, strict=True))
        found.append(terms(3, squares, np.sum(addend_RN.sum(axis=0) ** 2), total))
    square, trace = np.mean(found, axis=0)
    assert told[0]["noise_scale"] == (pytest.approx(trace / square, rel=1e-9) if square > 0 else None)
    assert trace > 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run on one rank, whose noise scale has estimates."""
    flags = {"algorithm.learning_rate": 1e-9, "algorithm.rollout_steps": 64, "train.steps": None, "train.updates": 6}
    return trained(tmp_path_factory.mktemp("alone") / "run", *as_words(tiny(), DIRECT, flags))


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_one_rank_has_estimates_from_its_second_update_on(alone):
    told = rows(alone)
    assert told[0]["noise_scale"] is None
    assert all(row["noise_scale_smoothed"] is None for row in told[:2])
    shares = [row["batch_share"] for row in told if row["batch_share"]]
    assert shares
    batch = [row["batch_share"] * row["noise_scale_smoothed"] for row in told if row["batch_share"]]
    assert batch == pytest.approx([128] * len(batch))  # 2 environments of 64 steps


def test_policies_have_scales_of_their_own(tmp_path):
    pytest.importorskip("pettingzoo")
    coin = {"environment.id": "distqtrl.environment.coin_game/parallel_env", "environment.max_episode_steps": 10}
    flags = {"agents.sharing": "independent", "algorithm.rollout_steps": 12, "train.steps": None, "train.updates": 4}
    last = rows(trained(tmp_path / "run", *as_words(tiny(), coin, flags)))[-1]
    assert all(set(FACTS) <= set(policy) for policy in last["policies"].values())
    assert len({policy["noise_scale_smoothed"] for policy in last["policies"].values()}) == 2
