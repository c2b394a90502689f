"""Learning rates over updates and ranks."""

import pytest
from runs import tiny

from distqtrl.allreduce import threads
from distqtrl.allreduce.communicator import Serial
from distqtrl.allreduce.rendezvous import Rendezvous
from distqtrl.config.sources import preset, with_flags
from distqtrl.training.build import prepare

RATES = {
    "algorithm.source_learning_rate": "0.5",
    "algorithm.learning_rate": "0.1",
    "algorithm.value_learning_rate": "1",
}


def learner(ranks=1, **flags):
    words = tiny() | RATES | {name.replace("__", "."): str(value) for name, value in flags.items()}
    members = threads.members(Serial(), Rendezvous(ranks))
    return prepare(with_flags(preset("cartpole"), words), members[0]).learner


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4)])
def test_every_rate_follows_the_number_of_ranks(scaling, factor):
    made = learner(ranks=4, algorithm__rate_scaling=scaling)
    assert made.optimizer.rates == [0.5 * factor, 0.1 * factor, 1.0 * factor]
    made.set_progress(0.5, update=7)
    assert made.optimizer.rates == [0.5 * factor, 0.1 * factor, 1.0 * factor]


def test_rates_rise_in_the_warm_up_and_fall_with_the_budget():
    made, found = learner(algorithm__warmup=4, algorithm__anneal="true"), []
    for update in range(6):
        made.set_progress(update / 10, update)
        found.append(made.optimizer.rates[1])
    assert found == pytest.approx([0.025, 0.045, 0.06, 0.07, 0.06, 0.05])


def test_the_warm_up_begins_where_learning_does():
    sac = {"environment__id": "Pendulum-v1", "algorithm__name": "sac", "algorithm__learning_starts": 60}
    made, found = learner(algorithm__warmup=2, algorithm__batch_size=8, **sac), []
    for update in range(4):  # of 32 steps: two are silent
        made.set_progress(0, update)
        found.append(made.optimizer.rates[1])
    assert found == pytest.approx([0.05, 0.05, 0.05, 0.1])
