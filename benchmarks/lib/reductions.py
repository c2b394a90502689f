"""The reductions of an update by themselves: which there are, what they take here, what they would take on a network.

    mpirun -n 2 python benchmarks/lib/reductions.py measure '{"lengths": [50], "calls": [["sum", 50, 4]], "bursts": 9}'
    python benchmarks/lib/reductions.py trace cartpole

scaling.py runs these two programs and asks the model at the end of this file. Both print JSON. ``trace`` trains
alone and notes every call that would go to other ranks; ``measure`` times them on the ranks of mpirun, in bursts of
calls back to back that begin together. Calls are (sum, float64 numbers, times) and (allgather, bytes, times).
"""

import functools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from distqtrl.allreduce.communicator import Communicator, Serial
from distqtrl.allreduce.connect import connect
from distqtrl.allreduce.reductions import REDUCTIONS, ordered_sum
from distqtrl.cli.parser import parse
from distqtrl.config import sources

Call = tuple[str, int, float]
OPTIONAL = ("pennylane", "qiskit", "qiskit_aer", "onnx", "matplotlib")  # a run without them need not load them
WATCHED = (*OPTIONAL, "torch", "torch._dynamo", "numba", "scipy", "sympy", "tensorboard")
LATENCY_US, GB_PER_S = 2.0, 10.0  # of the network
PREDICTED = [2**k for k in range(4, 13)]  # ranks
METHODS = {"ordered": "ordered", "tree": "tree", "fast": "fast", "ring": "ordered, by a ring"}
CORES = os.cpu_count() or 1
ALONE = """--allreduce.reduction fast --evaluate.every none --evaluate.target none --evaluate.episodes 1
    --train.steps none"""  # fast: sums and allgathers are told apart


# ---- which there are


class Noting(Serial):
    """One rank that notes what it would say to others."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, int]] = Counter()

    def allgather(self, x: np.ndarray) -> np.ndarray:
        self.calls["allgather", x.nbytes] += 1
        return super().allgather(x)

    def allreduce_sum(self, x_N: np.ndarray) -> np.ndarray:
        self.calls["sum", len(x_N)] += 1
        return super().allreduce_sum(x_N)


def trace(preset: str) -> dict[str, Any]:
    """The calls of an update, in the mean over as many as lie between two comparisons of the replicas; a checkpoint's.

    What begins and ends a run is in both runs, so their difference is without it.
    """

    stages = sources.preset(preset)
    every = stages.allreduce.check_every
    (short, _), (long, checkpoint) = (noted(preset, updates) for updates in (every, 2 * every))
    return {
        "calls": [(kind, size, times / every) for (kind, size), times in sorted((long - short).items())],
        "checkpoint": [(kind, size, float(times)) for (kind, size), times in sorted(checkpoint.items())],
        "checkpoint_every": stages.train.checkpoint_every,
        "loaded": [name for name in WATCHED if name in sys.modules],
    }


def noted(preset: str, updates: int) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, int]]]:
    """What one rank would say to others: in a run without checkpoints, and for the checkpoint at its end."""
    from distqtrl.cli import arguments
    from distqtrl.record import checkpoint
    from distqtrl.training.build import prepare
    from distqtrl.training.loop import train

    config = arguments.resolve(*parse(["train", preset, *ALONE.split(), "--train.updates", str(updates)]))
    comm, saving = Noting(), Noting()
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch("distqtrl.training.loop.checkpoint.save") as save:
            train(prepare(config, comm), Path(folder))
        checkpoint.save(Path(folder), config, saving, save.call_args.args[-1])
    return comm.calls, saving.calls


# ---- what they take here


def measure(comm: Communicator, lengths: Sequence[int], calls: Sequence[Call], bursts: int) -> dict[str, Any]:
    """Microseconds of a call (of all of an update's calls) on this rank: median and minimum over bursts, in turns."""
    cases: dict[tuple[str, str], tuple[int, Callable[[], Any]]] = {}
    for name, reduce in REDUCTIONS.items():
        for n in lengths:
            cases[name, str(n)] = max(5, min(20, 100_000 // n)), functools.partial(reduce, comm, np.ones(n))
        cases[name, "update"] = 1, functools.partial(replay, comm, reduce, calls)
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in cases}
    for _ in range(bursts):
        for key, (times, call) in cases.items():
            comm.allgather(np.zeros(1))  # begin together
            began = time.perf_counter()
            for _ in range(times):
                call()
            taken[key].append(1e6 * (time.perf_counter() - began) / times)
    rows: dict[str, dict[str, Any]] = {name: {} for name in REDUCTIONS}
    for (name, what), us in taken.items():
        per = REPLAYED if what == "update" else 1
        rows[name][what] = {"median_us": statistics.median(us) / per, "min_us": min(us) / per}
    return {"ranks": comm.size, **comm.describe(), "rows": rows}


REPLAYED = 10  # updates in one replay, so that what comes once in so many is in it


def replay(comm: Communicator, reduce: Callable, calls: Sequence[Call]) -> None:
    """The calls of some updates, back to back."""
    for kind, size, times in calls:
        x = np.ones(size, dtype=np.float64 if kind == "sum" else np.uint8)
        for _ in range(round(REPLAYED * times)):
            reduce(comm, x) if kind == "sum" else comm.allgather(x)


class Gathered(Serial):
    """One rank that has the rows of all ranks already."""

    def __init__(self, x_RN: np.ndarray) -> None:
        self._x_RN = x_RN

    def allgather(self, x: np.ndarray) -> np.ndarray:
        return self._x_RN


@functools.cache
def summing_us(ranks: int, n: int) -> float:
    """What ``ordered_sum`` takes on one core for rows that are here; at a power of two measured, else in between."""
    if ranks & (ranks - 1):
        below = 1 << (ranks.bit_length() - 1)
        part = ranks / below - 1
        return (1 - part) * summing_us(below, n) + part * summing_us(2 * below, n)
    x_RN = np.ones((ranks, n))
    return _median_us(lambda: ordered_sum(Gathered(x_RN), x_RN[0]), 100 if ranks * n < 100_000 else 10)


@functools.cache
def adding_us(n: int) -> float:
    """What adding two vectors takes on one core."""
    x_N = np.ones(n)
    return _median_us(lambda: x_N + x_N, 100)


def _median_us(call: Callable[[], Any], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1e6 * statistics.median(taken)


# ---- what they would take on a network


@dataclass(frozen=True)
class Link:
    """What carries messages; call_us is the time of a call that sends nothing (tree: of every round)."""

    call_us: float
    gb_per_s: float
    latency_us: float = 0.0  # of a message, where call_us does not hold it


@dataclass(frozen=True)
class Work:
    """What a reduction does on the rank that does most."""

    calls: int
    messages: float  # one after the other
    num_bytes: float
    adding_us: float


def work(name: str, ranks: int, n: int) -> Work:
    """Of one sum of n float64; ``ring`` is ordered with a ring in place of Bruck's allgather."""
    rounds, size, add_us = math.log2(ranks), 8 * n, adding_us(n)
    if name in ("ordered", "ring"):
        return Work(1, rounds if name == "ordered" else ranks - 1, (ranks - 1) * size, summing_us(ranks, n))
    if name == "tree":
        levels = math.ceil(rounds)
        return Work(levels, levels, levels * size, levels * add_us)
    if size < 2048:  # as MPICH: short vectors by recursive doubling, others by Rabenseifner's halving and doubling
        return Work(1, rounds, rounds * size, rounds * add_us)
    part = (ranks - 1) / ranks
    return Work(1, 2 * rounds, 2 * part * size, part * add_us)


def taken_us(w: Work, link: Link) -> float:
    """Microseconds of this work over this link."""
    return w.calls * link.call_us + w.messages * link.latency_us + w.num_bytes / 1e3 / link.gb_per_s + w.adding_us


def fit(name: str, points: Sequence[tuple[int, int, float]]) -> tuple[Link, float]:
    """The link of this machine's memory through (ranks, n, us), and the root mean square of the relative errors.

    Least squares of relative errors; additions are subtracted as measured on one core, the two unknowns are the time
    of a call and that of a byte.
    """
    works, us = [work(name, ranks, n) for ranks, n, _ in points], np.array([us for *_, us in points])
    a = np.array([[w.calls, w.num_bytes / 1e3] for w in works]) / us[:, np.newaxis]
    rest = (us - [w.adding_us for w in works]) / us
    call_us, us_per_kb = np.linalg.lstsq(a, rest, rcond=None)[0]
    link = Link(float(call_us), float(1 / us_per_kb))
    errors = np.array([taken_us(w, link) for w in works]) / us - 1
    return link, float(np.sqrt(np.mean(errors**2)))


def update_us(name: str, ranks: int, calls: Sequence[Call], links: dict[str, Link]) -> float:
    """All calls of an update; allgathers are a call with rounds as ``ordered`` has them, and no sum."""
    link, total = links[name], 0.0
    for kind, size, times in calls:
        gathers = Work(1, math.log2(ranks), (ranks - 1) * size, 0.0)
        total += times * (
            taken_us(work(name, ranks, size), link) if kind == "sum" else taken_us(gathers, links["ordered"])
        )
    return total


def prediction(alone: dict[int, Any], traced: dict[str, Any], one_us: float) -> dict[str, Any]:
    """Efficiency of weak scaling on a network, and the model of this machine behind it."""
    calls: list[Call] = traced["calls"]
    fitted = [n for n in alone if n <= CORES] or [min(alone)]
    fits, links = {}, {}
    for name in REDUCTIONS:
        minima = [(n, int(k), v["min_us"]) for n in alone for k, v in alone[n][name].items() if k != "update"]
        here, error = fit(name, [point for point in minima if point[0] in fitted])
        slower = {
            n: statistics.median(us / taken_us(work(name, m, k), here) for m, k, us in minima if m == n) for n in alone
        }
        fits[name] = {"ranks": fitted, **vars(here), "error": error, "slower": slower}
        links[name] = Link(here.call_us, GB_PER_S, LATENCY_US)
    links["ring"] = links["ordered"]

    def row(n: int) -> dict[str, Any]:
        us = {name: update_us(name, n, calls, links) for name in METHODS}
        return {"ranks": n, "us": us, "efficiency": {name: one_us / (one_us + us[name]) for name in METHODS}}

    every = [row(n) for n in range(2, PREDICTED[-1] + 1)]
    below = {name: [r["ranks"] for r in every if r["efficiency"][name] < 0.9] for name in METHODS}
    gradient = max(size for kind, size, _ in calls if kind == "sum")
    return {
        "one_rank_us": one_us,
        "fits": fits,
        "rows": [r for r in every if r["ranks"] in PREDICTED],
        "below_90": {name: ranks[0] if ranks else None for name, ranks in below.items()},
        "summing_us": {n: summing_us(n, gradient) for n in PREDICTED},
        "adding_us": adding_us(gradient),
        "checkpoint_us": {n: update_us("ordered", n, traced["checkpoint"], links) for n in PREDICTED},
    }


if __name__ == "__main__":
    if sys.argv[1] == "trace":
        print(json.dumps(trace(sys.argv[2])))
    else:
        world = connect()
        found = measure(world, **json.loads(sys.argv[2]))
        if world.rank == 0:
            print(json.dumps(found))
