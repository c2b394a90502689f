"""distqtrl whose Aer device fails on rank 1 at a given call: python failing.py CALL ARGUMENTS..."""

import itertools
import sys

from distqtrl.allreduce.connect import announced
from distqtrl.circuit.aer import Aer
from distqtrl.cli import main as cli

CALLS = itertools.count()
working = Aer.probabilities


def failing(self, theta_KP, seeds_K):
    if announced("rank", without=0) == 1 and next(CALLS) == int(sys.argv[1]):
        raise RuntimeError("calibration lost")
    return working(self, theta_KP, seeds_K)


Aer.probabilities = failing
sys.exit(cli.main(sys.argv[2:]))
