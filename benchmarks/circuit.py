"""Probabilities and gradient of a circuit: our engine beside its peers, one thread each, in one run.

    python benchmarks/circuit.py          writes benchmarks/results/circuit/circuit.*; about 10 minutes
    python benchmarks/circuit.py --quick  a small circuit, one peer; writes nothing unless -o is given

One call gives p_S and d(v.p)/d theta_P for a random cotangent v_S. Every version lives in a process of its own, and
its answer is compared with ours before it is timed. Import, build, compilation and the first call are not timed. The
versions take turns, so that noise hits all alike; a figure is the median over the calls of all turns.

The adjoint method of the peers gets diag(v) as a sparse observable and is called at the level of the device, once for
p and once for the gradient, because their QNodes are slower. "Private classes" are what lightning's device is made
of: they share one forward sweep between p and the gradient. jax.jit takes part where jax is installed (pip install
jax==0.7.1). Qiskit Aer has no gradient. TorchQuantum 0.1.8 does not import beside the torch that is pinned here.
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
from lib import setting

ROWS = {  # (ansatz, qubits, layers): goal, how many times faster than the fastest peer
    ("u3_cu3_ring", 10, 5): 200,
    ("u3_cu3_ring", 13, 13): 40,
    ("ry_cnot", 10, 13): 100,
    ("ry_cnot", 14, 13): 15,
    ("ry_cnot", 20, 13): 10,
}
QUICK = {("u3_cu3_ring", 6, 2): None}
COPIED = 1 << 28  # bytes of each of the two arrays of the bandwidth measurement; no cache holds them
TOLERANCE = 1e-8
ANSWER_S = 120  # until a version's first answer, compilation included
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


# ---- versions: (row) -> a call that gives (p_S, gradient_P)


def case(row):
    """Gates, angles and cotangent; the same in every process."""
    from distqtrl.circuit.ansatz import ANSATZE, program

    ansatz, n, layers = row
    gates = ANSATZE[ansatz](n, layers)
    rng = np.random.default_rng(3)
    theta_P = rng.uniform(-np.pi, np.pi, program(n, gates).num_angles)
    return gates, theta_P, rng.standard_normal(1 << n)


def ours(row, precision="float64"):
    from distqtrl.circuit.ansatz import program
    from distqtrl.circuit.statevector import StateVector
    from distqtrl.config.stages import Qpu

    gates, theta_P, v_S = case(row)
    device = StateVector(program(row[1], gates), Qpu(precision=precision))

    def call():
        p_S, vjp = device.differentiable(theta_P, "adjoint")
        return p_S, vjp(v_S)

    return call


def ours_float32(row):
    return ours(row, "float32")


def memory(row):
    """Ours; the "gradient" is the first call's peak memory, in bytes, beyond what the loaded code takes (Linux)."""
    ours((row[0], 10, row[2]))()
    call = ours(row)
    Path("/proc/self/clear_refs").write_text("5")  # count the peak from here on
    before = _kilobytes("/proc/self/status", "VmRSS")
    p_S, _ = call()
    rise = np.array([(_kilobytes("/proc/self/status", "VmHWM") - before) * 1024.0])
    return lambda: (p_S, rise)


def copy(row):
    """The machine's copy bandwidth: a call reads COPIED bytes and writes as many."""
    source, target = np.ones(COPIED // 8), np.ones(COPIED // 8)

    def call():
        np.copyto(target, source)
        return target[:1], target[:1]

    return call


def default_backprop(row):
    import pennylane as qml
    import torch

    torch.set_num_threads(1)
    gates, theta_P, v_S = case(row)

    @qml.qnode(qml.device("default.qubit", wires=row[1]), interface="torch", diff_method="backprop")
    def circuit(theta_P):
        queue(qml, gates, theta_P, split=False)
        return qml.probs(wires=range(row[1]))

    def call():
        theta = torch.tensor(theta_P, requires_grad=True)
        p_S = circuit(theta.unbind())
        (p_S @ torch.from_numpy(v_S)).backward()
        return p_S.detach().numpy(), theta.grad.numpy()

    return call


def default_jit(row):
    """The whole of value and gradient compiled by XLA."""
    import jax
    import pennylane as qml

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # XLA has threads that no option bounds
    jax.config.update("jax_enable_x64", True)
    gates, theta_P, v_S = case(row)

    @qml.qnode(qml.device("default.qubit", wires=row[1]), interface="jax", diff_method="backprop")
    def circuit(theta_P):
        queue(qml, gates, theta_P, split=False)
        return qml.probs(wires=range(row[1]))

    def both(theta_P, v_S):
        p_S, vjp = jax.vjp(circuit, theta_P)
        return p_S, vjp(v_S)[0]

    compiled = jax.jit(both).lower(theta_P, v_S).compile()
    return lambda: tuple(np.asarray(x) for x in compiled(theta_P, v_S))


def default_adjoint(row):
    return by_device("default.qubit", row)


def lightning_adjoint(row):
    return by_device("lightning.qubit", row)


def by_device(name, row):
    import pennylane as qml

    device = qml.device(name, wires=row[1])
    tape, ordered = diagonal(qml, row)
    adjoint = qml.devices.ExecutionConfig(gradient_method="adjoint", use_device_gradient=True)

    def call():
        p_S = device.execute(tape(qml.probs(wires=range(row[1]))), qml.devices.ExecutionConfig())
        _, jacobian = device.execute_and_compute_derivatives(tape(), adjoint)
        return p_S, ordered(jacobian)

    return call


def lightning_private(row):
    import pennylane as qml
    from pennylane_lightning.lightning_qubit._adjoint_jacobian import LightningAdjointJacobian
    from pennylane_lightning.lightning_qubit._state_vector import LightningStateVector

    tape, ordered = diagonal(qml, row)

    def call():
        script = tape()
        vector = LightningStateVector(row[1]).get_final_state(script)
        jacobian = LightningAdjointJacobian(vector).calculate_jacobian(script)
        psi_S = vector.state
        return psi_S.real**2 + psi_S.imag**2, ordered(jacobian)

    return call


def diagonal(qml, row):
    """A maker of tapes that measure diag(v) (new in every call, as in training), and the way back to theta's order."""
    from scipy.sparse import csr_matrix

    gates, theta_P, v_S = case(row)
    wires, rows = range(row[1]), np.arange(len(v_S) + 1)
    order = []
    for kind, _, _ in gates:
        order += {"u3": [len(order) + 2, len(order), len(order) + 1], "ry": [len(order)], "x": []}[kind]

    def tape(measured=None):
        with qml.QueuingManager.stop_recording():
            operations = queue(qml, gates, theta_P, split=True)
            if measured is None:
                matrix = csr_matrix((v_S, rows[:-1], rows), shape=(len(v_S), len(v_S)))
                measured = qml.expval(qml.SparseHamiltonian(matrix, wires=wires))
        return qml.tape.QuantumScript(operations, [measured], trainable_params=range(len(theta_P)))

    def ordered(jacobian):
        gradient_P = np.empty(len(theta_P))
        gradient_P[order] = np.asarray(jacobian)
        return gradient_P

    return tape, ordered


def queue(qml, gates, theta_P, split):
    """The gates as PennyLane's operations.

    u3(t, p, l) = phase(p) ry(t) phase(l), with or without a control: split like that, every gate is native in
    lightning and has a native derivative. As one matrix it is one pass for backprop.
    """
    operations, angles = [], iter(theta_P)
    for kind, target, control in gates:
        wires = [target] if control is None else [control, target]
        if kind == "x":
            operations.append(qml.CNOT(wires))
            continue
        if kind == "ry":
            operations.append(qml.RY(next(angles), target))
            continue
        t, p, el = next(angles), next(angles), next(angles)
        if not split:
            operations.append(
                qml.U3(t, p, el, target) if control is None else qml.ctrl(qml.U3(t, p, el, target), control)
            )
            continue
        phase, ry = (qml.PhaseShift, qml.RY) if control is None else (qml.ControlledPhaseShift, qml.CRY)
        operations += [phase(el, wires), ry(t, wires), phase(p, wires)]
    return operations


PEERS = {  # title: function, states that one backward pass goes through (backprop: 0)
    "default.qubit backprop": (default_backprop, 0),
    "default.qubit backprop, jax.jit": (default_jit, 0),
    "default.qubit adjoint": (default_adjoint, 2),
    "lightning.qubit adjoint": (lightning_adjoint, 2),
    "lightning.qubit, private classes": (lightning_private, 2),
}
NAMED = ("default.qubit backprop", "default.qubit adjoint", "lightning.qubit adjoint")  # whom the goals were set by
VERSIONS = {f.__name__: f for f in (ours, ours_float32, memory, copy, *(f for f, _ in PEERS.values()))}


# ---- processes


def work(name, row, answer):
    """The life of a worker: answer once, then time calls for as many seconds as each line of stdin says."""
    warnings.simplefilter("ignore")
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    free = int(0.7 * 1024 * _kilobytes("/proc/meminfo", "MemAvailable"))
    resource.setrlimit(resource.RLIMIT_DATA, (free, free))  # a peer that needs more fails, not the machine
    try:
        start = time.perf_counter()
        call = VERSIONS[name](row)
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


def _kilobytes(path, key):
    return next(int(text.split()[1]) for text in Path(path).read_text().splitlines() if text.startswith(key + ":"))


# ---- the run


def main():
    parser = setting.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of calls of one version in one row")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, row, answer = args.worker
        work(name, tuple(json.loads(row)), answer)
        return
    if args.quick:
        args.seconds = 0.2
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

    ansatz, n, layers = row
    title = f"{ansatz} n={n} L={layers}"
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


def error(worker, reference):
    """The largest absolute difference of the gradient, or of p."""
    pairs = (worker.p_S, reference.p_S), (worker.gradient_P, reference.gradient_P)
    return max(float(np.nan_to_num(abs(x - y), nan=np.inf).max()) for x, y in pairs)


def quartiles(worker):
    q1, median, q3 = np.percentile(worker.times, [25, 50, 75])
    return {"median_s": float(median), "q1_s": float(q1), "q3_s": float(q3), "calls": len(worker.times)}


def peer_bytes(swept, n, gates):
    """What a peer moves in one pass over its state(s) per gate; a controlled gate touches half of a state.

    Forward: the state read and written. Adjoint: backwards psi and lambda read and written, and both read once more
    per angle. Backprop: a saved state per gate written and read again, and the cotangent read and written.
    """
    state, total = 16 << n, 0
    for kind, _, control in gates:
        touched = state if control is None else state // 2
        total += 2 * touched + swept * touched * (2 + {"u3": 3, "ry": 1, "x": 0}[kind])
        total += 0 if swept else 2 * state + 2 * touched
    return total


def fastest(row, peers):
    """(ratio to ours, name) of the fastest of these peers."""
    found = [(row["peers"][peer]["median_s"], peer) for peer in peers if "median_s" in row["peers"].get(peer, {})]
    seconds, peer = min(found)
    return seconds / row["ours"]["median_s"], peer


def table(results):
    """The results as Markdown."""
    rows = results["rows"]
    lines = [
        "# Circuit, value + gradient",
        "",
        setting.line(results),
        "",
        "Median (quartiles) of all calls, float64, one thread. The goals were set against PennyLane's default.qubit",
        "and lightning.qubit as they are installed; the last column is the ratio to the fastest of all versions below.",
        "",
        "| circuit | angles | ours | faster than the fastest peer | goal | reached | than the fastest of all |",
        "|---|--:|--:|---|--:|---|---|",
    ]
    for row in rows:
        (ratio, peer), (least, strongest) = fastest(row, NAMED), fastest(row, PEERS)
        goal = ("", "") if row["goal"] is None else (f"{row['goal']}x", "yes" if ratio >= row["goal"] else "**no**")
        lines.append(
            f"| {row['circuit']} | {row['angles']} | {spread(row['ours'])} | {ratio:.3g}x, {peer} "
            f"| {goal[0]} | {goal[1]} | {least:.3g}x, {strongest} |"
        )
    lines += ["", "## Every version", "", f"| circuit | {' | '.join(PEERS)} |", "|---" * (1 + len(PEERS)) + "|"]
    for row in rows:
        cells = [row["peers"].get(peer, {"problem": "not asked"}) for peer in PEERS]
        shown = [cell.get("problem") or spread(cell) for cell in cells]
        lines.append(f"| {row['circuit']} | {' | '.join(shown)} |")
    lines += [
        "",
        "## Memory traffic",
        "",
        "Bytes that ours reads and writes in memory (`lib/effort.py`), the copy bandwidth measured in the",
        f"same turns (bytes read + written, arrays of {COPIED >> 20} MiB), and the time that this gives. A state that",
        "fits in a cache does not wait for memory: ours is then bound by arithmetic. For the peers, one pass per gate",
        "is assumed.",
        "",
        "| circuit | ours moves | bandwidth | limit | ours / limit | an adjoint peer moves | a backprop peer moves |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        moved = [row["peers"].get(peer, {"bytes": 0})["bytes"] / 1e6 for peer in (NAMED[2], NAMED[0])]
        lines.append(
            f"| {row['circuit']} | {row['bytes'] / 1e6:,.3g} MB | {row['bandwidth'] / 1e9:.1f} GB/s "
            f"| {1e3 * row['limit_s']:.3g} ms | {row['ours']['median_s'] / row['limit_s']:.2f} "
            f"| {moved[0]:,.3g} MB | {moved[1]:,.3g} MB |"
        )
    lines += ["", "## float32", "", "| circuit | float32 | faster than float64 | largest error |", "|---|--:|--:|--:|"]
    for row in rows:
        single = row["float32"]
        ratio = row["ours"]["median_s"] / single["median_s"]
        lines.append(f"| {row['circuit']} | {spread(single)} | {ratio:.2f}x | {single['error']:.1e} |")
    lines += [
        "",
        f"Peak memory of one call at the largest n, beyond loaded code and inputs: "
        f"{results['memory_bytes'] / 1e6:,.3g} MB, {results['memory_states']:.2f} complex128 state vectors.",
    ]
    for name, seconds in results.get("first_use_s", {}).items():
        lines += ["", f"First answer in a new process, {name} of compiled code: {seconds:.1f} s."]
    return "\n".join(lines)


def spread(times):
    q1, median, q3 = (1e3 * times[key] for key in ("q1_s", "median_s", "q3_s"))
    return f"{median:,.3g} ms ({q1:,.3g} to {q3:,.3g})"


if __name__ == "__main__":
    main()
