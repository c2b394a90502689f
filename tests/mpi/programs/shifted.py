"""One gradient whose shifted circuits are shared by the ranks: python shifted.py FILE.npz

Every rank has its own cotangent; their sum is the same for any number of ranks. Rank 0 writes the summed gradients
and how many circuits each rank executed for them.
"""

import sys

import numpy as np

from distqtrl.allreduce.connect import connect
from distqtrl.allreduce.reductions import ordered_sum
from distqtrl.circuit import qpu
from distqtrl.circuit.shift import Ranks
from distqtrl.config.stages import Circuit, Qpu

CASES = {"exact": {}, "shots": {"shots": 300}, "torch": {"backend": "torch"}}
N = 4


def main():
    comm, results = connect(), {}
    v_S = np.random.default_rng(0).normal(size=2**N)
    mine_S = v_S * (comm.rank + 1) / sum(range(1, comm.size + 1))
    ranks = Ranks(comm.rank, comm.ranks, lambda v: ordered_sum(comm, v))
    for name, settings in CASES.items():
        device = qpu.build(Circuit(layers=2), Qpu(shift="distributed", **settings), N, ranks=ranks)
        theta_P = np.random.default_rng(1).uniform(-np.pi, np.pi, device.num_angles)
        part_P = device.probabilities(theta_P)[1](mine_S)
        results[name] = ordered_sum(comm, part_P)
        results[f"{name}/circuits"] = comm.allgather(np.array([device.ledger.circuits - 1]))[:, 0]
    if comm.rank == 0:
        exact = qpu.build(Circuit(layers=2), Qpu(), N)
        np.savez(sys.argv[1], adjoint=exact.probabilities(theta_P)[1](v_S), **results)


if __name__ == "__main__":
    main()
