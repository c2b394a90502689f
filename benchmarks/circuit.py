"""Probabilities and gradient of a circuit: our engine beside its peers, one thread each, in one run.

    python benchmarks/circuit.py          writes benchmarks/results/circuit/circuit.*; about 10 minutes
    python benchmarks/circuit.py --batched   many different circuits at once: circuit/batches.*; about half an hour
    python benchmarks/circuit.py --quick  a small circuit, one peer; writes nothing unless -o is given

One call gives p_S and d(v.p)/d theta_P for a random cotangent v_S. Every version lives in a process of its own, and
its answer is compared with ours before it is timed. Import, build, compilation and the first call are not timed. The
versions take turns, so that noise hits all alike; a figure is the median over the calls of all turns.

The adjoint method of the peers gets diag(v) as a sparse observable and is called at the level of the device, once for
p and once for the gradient, because their QNodes are slower. "Private classes" are what lightning's device is made
of: they share one forward sweep between p and the gradient. jax.jit takes part where jax is installed (pip install
jax==0.7.1, and tensorcircuit-ng for batches). Qiskit Aer has no gradient. TorchQuantum 0.1.8 does not import beside
the torch that is pinned here.
"""

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from lib import circuit_batches, setting
from lib.circuit_page import batches, table
from lib.circuit_versions import COPIED, NAMED, PEERS, VERSIONS, case, kilobytes, peer_bytes

ROWS = {  # (ansatz, qubits, layers): goal, how many times faster than the fastest peer
    ("u3_cu3_ring", 10, 5): 200,
    ("u3_cu3_ring", 13, 13): 40,
    ("ry_cnot", 10, 13): 100,
    ("ry_cnot", 14, 13): 15,
    ("ry_cnot", 20, 13): 10,
}
QUICK = {("u3_cu3_ring", 6, 2): None}
BATCHED = {  # goals at K = 256 on 2 threads: times faster than one by one, and than the fastest peer
    ("ry_cnot_ring", 4, 3): None,
    ("ry_cnot_ring", 6, 3): (5, 20),
    ("ry_cnot_ring", 8, 16): None,  # the circuit of the preset cartpole
    ("u3_cu3_ring", 8, 5): None,
    ("u3_cu3_ring", 10, 5): (1.7, 20),
    ("u3_cu3_ring", 13, 5): None,
}
CIRCUITS = (1, 16, 256, 4096)
CALL_S = 60  # a call that is expected to take longer is left out
TOLERANCE = 1e-8
ANSWER_S = 120  # until a version's first answer, compilation included
THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"
TWO_THREADS = {**dict.fromkeys(THREADS, "2"), "XLA_FLAGS": ""}
ONE_THREAD = {
    **dict.fromkeys(THREADS, "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def work(name, row, answer):
    """The life of a worker: answer once, then time calls for as many seconds as each line of stdin says."""
    warnings.simplefilter("ignore")
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    free = int(0.7 * 1024 * kilobytes("/proc/meminfo", "MemAvailable"))
    resource.setrlimit(resource.RLIMIT_DATA, (free, free))  # a peer that needs more fails, not the machine
    try:
        start = time.perf_counter()
        call = (VERSIONS | circuit_batches.VERSIONS)[name](row)
        p_S, gradient_P = call()
        np.savez(answer, p=p_S, gradient=gradient_P)
        print(json.dumps({"first_s": time.perf_counter() - start}), file=talk, flush=True)
    except ModuleNotFoundError as error:
        print(json.dumps({"error": f"{error.name} is not installed"}), file=talk, flush=True)
        return
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {str(error)[:120]}"}), file=talk, flush=True)
        return
    for text in sys.stdin:
        times = []
        while not times or sum(times) < float(text):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), file=talk, flush=True)


class Worker:
    """A version in a process of its own; ``error`` says why it takes no part."""

    def __init__(self, name, row, environment=None):
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "answer.npz"
            command = [sys.executable, __file__, "--worker", name, json.dumps(row), str(answer)]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **ONE_THREAD, **(environment or {})},
            )
            ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_S)
            said = json.loads(
                (self.process.stdout.readline() if ready else "") or f'{{"error": "no answer in {ANSWER_S} s"}}'
            )
            self.error, self.first_s, self.times = said.get("error", ""), said.get("first_s"), []
            if not self.error:
                with np.load(answer) as file:
                    self.p_S, self.gradient_P = file["p"], file["gradient"]

    def turn(self, seconds):
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        self.times += json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.kill()
        self.process.communicate()


def one(name, row, environment=None):
    """A version that is asked once."""
    worker = Worker(name, row, environment)
    worker.stop()
    if worker.error:
        sys.exit(f"{name}: {worker.error}")
    return worker


def main():
    parser = setting.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of calls of one version in one row")
    parser.add_argument("--batched", action="store_true", help="many different circuits at once")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, row, answer = args.worker
        work(name, tuple(json.loads(row)), answer)
        return
    if args.quick:
        args.seconds = 0.2
    if args.batched:
        all_batches(args)
        return
    rows = QUICK if args.quick else ROWS
    peers = [NAMED[2]] if args.quick else list(PEERS)
    packages = "numba", "numpy", "torch", "pennylane", "pennylane-lightning", "jax"
    results = {
        **setting.facts(*packages),
        "rows": [measured(row, goal, peers, args.seconds) for row, goal in rows.items()],
    }
    largest = max(rows, key=lambda row: row[1])
    results["memory_bytes"] = float(one("memory", largest).gradient_P[0])
    results["memory_states"] = results["memory_bytes"] / (16 << largest[1])
    if not args.quick:
        with tempfile.TemporaryDirectory() as cache:
            first = [one("ours", next(iter(rows)), {"NUMBA_CACHE_DIR": cache}).first_s for _ in range(2)]
        results["first_use_s"] = dict(zip(("empty cache", "filled cache"), first, strict=True))
    setting.save(args, "circuit/circuit", results, table(results))


def measured(row, goal, peers, seconds):
    """One row: answers compared, then times taken in turns."""
    from lib.effort import traffic

    from distqtrl.circuit.ansatz import program

    title, n = named(row), row[1]
    workers = {name: Worker(name, row) for name in ("ours", "ours_float32", "copy")}
    if workers["ours"].error:
        sys.exit(f"{title}: our own version failed: {workers['ours'].error}")
    for peer in peers:
        print(f"{title}: {peer}", file=sys.stderr)
        workers[peer] = worker = Worker(PEERS[peer][0].__name__, row)
        if not worker.error and (wrong := error(worker, workers["ours"])) > TOLERANCE:
            worker.error = f"wrong: off by {wrong:.1e}"
    able = [worker for worker in workers.values() if not worker.error]
    while todo := [w for w in able if len(w.times) < 3 or sum(w.times) < seconds]:
        for worker in todo:
            worker.turn(seconds / 10)
    for worker in workers.values():
        worker.stop()
    gates = case(row)[0]
    single, bytes_ = workers["ours_float32"], traffic(program(n, gates), "float64")
    bandwidth = 2 * COPIED / float(np.median(workers["copy"].times))
    return {
        "circuit": title,
        "angles": len(workers["ours"].gradient_P),
        "goal": goal,
        "ours": quartiles(workers["ours"]),
        "float32": {**quartiles(single), "error": error(single, workers["ours"])},
        "peers": {
            peer: {
                **({"problem": workers[peer].error} if workers[peer].error else quartiles(workers[peer])),
                "bytes": peer_bytes(PEERS[peer][1], n, gates),
            }
            for peer in peers
        },
        "bytes": bytes_,
        "bandwidth": bandwidth,
        "limit_s": bytes_ / bandwidth,
    }


def all_batches(args):
    rows, circuits = ({("ry_cnot_ring", 3, 2): (5, 20)}, (1, 9)) if args.quick else (BATCHED, CIRCUITS)
    peers = {title: f for title, f in circuit_batches.PEERS.items() if not args.quick or "broadcast" in title}
    results = {
        **setting.facts("numba", "numpy", "torch", "pennylane", "pennylane-lightning", "jax", "tensorcircuit-ng"),
        "call_s": CALL_S,
        "answer_s": ANSWER_S,
        "rows": [row for each in rows for row in batches_of(each, circuits, peers, args.seconds)],
        "goals": [{"circuit": named(row), "goals": goals} for row, goals in rows.items() if goals],
    }
    setting.save(args, "circuit/batches", results, batches(results))


def batches_of(row, circuits, peers, seconds):
    """The cells of every K of one circuit; what did not answer, or was too slow for the next K, is not asked again."""
    slow, found = {}, []
    for num in circuits:
        expected = lambda title: num / slow[title][0] * slow[title][1] if title in slow else 0  # noqa: B023, E731
        workers, problems = {}, {}
        for title, function in (circuit_batches.OURS | peers).items():
            print(f"{named(row)} K={num}: {title}", file=sys.stderr)
            if expected(title) > CALL_S:
                problems[title] = f"left out: about {expected(title):,.0f} s a call"
                continue
            workers[title] = worker = Worker(function.__name__, (*row, num), TWO_THREADS)
            if not worker.error and (wrong := error(worker, workers["one by one"])) > TOLERANCE:
                worker.error = f"wrong: off by {wrong:.1e}"
            if worker.error:
                problems[title] = worker.error
                if worker.error.startswith("no answer"):
                    slow[title] = (num, np.inf)
        able = {title: worker for title, worker in workers.items() if not worker.error}
        while todo := [w for w in able.values() if sum(w.times) < seconds]:
            for worker in todo:
                worker.turn(seconds / 10)
        for worker in workers.values():
            worker.stop()
        slow |= {title: (num, float(np.median(worker.times))) for title, worker in able.items()}
        cells = {title: {**quartiles(worker), "first_s": worker.first_s} for title, worker in able.items()}
        cells |= {title: {"problem": problem} for title, problem in problems.items()}
        found.append({"circuit": named(row), "circuits": num, "cells": cells})
    return found


def named(row):
    return f"{row[0]} n={row[1]} L={row[2]}"


def error(worker, reference):
    """The largest absolute difference of the gradient, or of p."""
    pairs = (worker.p_S, reference.p_S), (worker.gradient_P, reference.gradient_P)
    return max(float(np.nan_to_num(abs(x - y), nan=np.inf).max()) for x, y in pairs)


def quartiles(worker):
    q1, median, q3 = np.percentile(worker.times, [25, 50, 75])
    return {"median_s": float(median), "q1_s": float(q1), "q3_s": float(q3), "calls": len(worker.times)}


if __name__ == "__main__":
    main()
