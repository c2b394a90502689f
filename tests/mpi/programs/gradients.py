"""Do updates in many configurations and save what came of them: python gradients.py FILE.npz CASES.json

CASES: {name: [updates, flags]}. Rank 0 writes, per case, the parameters of every rank before and after each
update's optimizer steps and after the ranks agreed, the gradient norms, and the normalizer.
"""

import json
import sys
from pathlib import Path

import numpy as np

from distqtrl.allreduce.connect import connect
from distqtrl.config.run import Config
from distqtrl.config.sources import with_flags
from distqtrl.record import checkpoint
from distqtrl.training import loop, updates
from distqtrl.training.build import prepare

GLOBAL_ENVIRONMENTS = 8


def parameters(run):
    """Every rank's parameters as one float64 vector each, (R, N)."""
    flat = np.concatenate([p.detach().double().numpy().ravel() for r in run.policies.learners for p in r.parameters])
    return run.comm.allgather(flat)


def case(comm, directory, number, flags):
    local_num = {"environment.local_num": str(GLOBAL_ENVIRONMENTS // comm.size)}
    config = with_flags(Config(), {**flags, **local_num})
    run = prepare(config, comm)
    result = {"before": [], "stepped": [], "agreed": [], "norm": []}
    for _ in range(number):
        result["before"].append(parameters(run))
        metrics, *_ = updates.update(run, [])
        result["stepped"].append(parameters(run))
        result["norm"].append(metrics["gradient_norm"])
        loop.synchronise(run)
        result["agreed"].append(parameters(run))
        checkpoint.save(directory, config, comm, loop.state(run))
    seen = [learner.normalizer for learner in run.policies.learners]
    return {**result, "normalizer": np.concatenate([x for n in seen for x in ([n.count], n.mean_O, n.m2_O)])}


def main():
    comm = connect()
    path, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    results = {}
    for name, (number, flags) in cases.items():
        directory = path.parent / name
        directory.mkdir(exist_ok=True)
        for key, value in case(comm, directory, number, flags).items():
            results[f"{name}/{key}"] = np.array(value)
    if comm.rank == 0:
        np.savez(path, **results)


if __name__ == "__main__":
    main()
