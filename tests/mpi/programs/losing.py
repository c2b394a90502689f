"""distqtrl whose ranks kill themselves: python losing.py '{"RANK": OPTIMIZER_STEP, ...}' ARGUMENTS..."""

import json
import os
import signal
import sys

from distqtrl import cli
from distqtrl.learner import Learner

LAST = json.loads(sys.argv[1]).get(os.environ["OMPI_COMM_WORLD_RANK"])
working = Learner.step


def step(self, *args):
    if self.num_steps == LAST:
        os.kill(os.getpid(), signal.SIGKILL)
    return working(self, *args)


Learner.step = step
code = cli.main(sys.argv[2:])
sys.exit(code)
