"""Run distqtrl several times on the same ranks: python several.py '[{"argv": [...], ...}, ...]'

pause, event   before that update, rank 0 makes the file ``event``, and every rank waits until it got a signal
flip, event    at the end of that update rank 1 makes the file and changes one bit of its parameters
limit          rank 0 cannot write files of more bytes than this (as if the disk were full)
also           {rank: arguments that this rank alone is given}
folder         the rank works in this folder
"{rank}" in argv and folder is the rank. The exit code is the last one that is not 0.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from distqtrl.allreduce.connect import announced
from distqtrl.circuit import statevector
from distqtrl.circuit.ansatz import program
from distqtrl.cli import main as cli
from distqtrl.cli import train
from distqtrl.config.stages import Qpu
from distqtrl.training import updates

RANK = announced("rank", without=0)


def wrapped(original, spec):
    """update, with what spec wants done around it."""

    def update(run, pending, *more):
        number = run.counters.update
        if number == spec.get("pause"):
            if RANK == 0:
                Path(spec["event"]).touch()
            deadline = time.monotonic() + 60
            while not pending and time.monotonic() < deadline:
                time.sleep(0.01)
        result = original(run, pending, *more)
        if number == spec.get("flip") and RANK == 1:
            Path(spec["event"]).touch()
            run.learner.parameters[0].detach().numpy().view(np.uint8)[0] ^= 1
        return result

    return update


def limit_files(size):
    if announced("size", without=1) > 1:
        from mpi4py import MPI  # noqa: F401 (its shared memory is a file, too)
    statevector.StateVector(program(1, []), Qpu())  # the engine's compiled code is on disk from here on
    if RANK == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def main():
    codes, original = [], updates.update
    train.draw = lambda directory: None  # a second of imports that nothing here looks at
    for spec in json.loads(sys.argv[1]):
        updates.update = wrapped(original, spec)
        if "limit" in spec:
            limit_files(spec["limit"])
        os.chdir(spec.get("folder", ".").replace("{rank}", str(RANK)))
        argv = spec["argv"] + spec.get("also", {}).get(str(RANK), [])
        codes.append(cli.main([part.replace("{rank}", str(RANK)) for part in argv]))
    return ([code for code in codes if code] or [0])[-1]


if __name__ == "__main__":
    sys.exit(main())
