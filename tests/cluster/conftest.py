"""A SLURM for the tests of a module, in each worker of pytest-xdist another; and what is to begin first.

A limit in these tests is there so that nothing hangs. Nothing is timed: other tests use the machine at the same time.
"""

import private_slurm
import pytest
from needs import need

LONGEST = [
    "test_short_time_limits_change_no_bit",
    "test_slurm_requeues_a_job_that_lost_a_host",
    "test_tasks_share_a_search_and_a_stopped_one_goes_on",
]


def pytest_collection_modifyitems(items):
    """Begin with what waits longest, so that everything else happens meanwhile."""
    items.sort(key=lambda item: LONGEST.index(item.name) if item.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    need(private_slurm.missing())
    options = {"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}
    with private_slurm.cluster(tmp_path_factory.mktemp("slurm"), options=options) as up:
        yield up
