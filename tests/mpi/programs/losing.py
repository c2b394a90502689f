"""distqtrl whose ranks kill themselves: python losing.py '{"RANK": OPTIMIZER_STEP, ...}' ARGUMENTS..."""

import json
import os
import signal
import sys

from distqtrl.cli import main as cli
from distqtrl.training.policy_gradient import update as sampling

LAST = json.loads(sys.argv[1]).get(os.environ["OMPI_COMM_WORLD_RANK"])
working = sampling.step


def step(learners, *args):
    if learners[0].generated.num_steps == LAST:
        os.kill(os.getpid(), signal.SIGKILL)
    return working(learners, *args)


sampling.step = step
code = cli.main(sys.argv[2:])
sys.exit(code)
