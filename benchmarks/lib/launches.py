"""What scaling.py starts: the preset on ranks, looked at from outside; imports in fresh interpreters."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib import setting
from lib.processes import OPENMPI_ENV, tagged

PRESET, ENVIRONMENTS = "cartpole-gnn", 8
FLAGS = """--evaluate.every none --evaluate.target none --evaluate.episodes 1 --train.steps none --json
    --allreduce.reduction ordered"""
TAG = "DISTQTRL_SCALING"
LIMIT_S = 300  # of one run
FEW = {
    "torch": "import torch",
    "distqtrl.training.loop": "import distqtrl.training.loop",
}  # what a fresh interpreter does
IMPORTS = {
    "numpy": "import numpy",
    "numba": "import numba",
    **FEW,
    "torch, and one optimizer": "import torch; torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])",
    "pennylane, when asked": "import pennylane",
    "qiskit_aer, when asked": "import qiskit_aer",
}


@dataclass(frozen=True)
class Case:
    """One way to start the preset."""

    name: str
    ranks: int
    local_num: int
    launcher: tuple[str, ...]  # up to and with the number of ranks, and the Python
    env: tuple[tuple[str, str], ...] = ()


@dataclass
class Measured:
    """What the runs of a case took, one entry per run, or per update of all runs; means over ranks."""

    rates: list[float] = field(default_factory=list)  # environment steps per second, of a run without its start
    first_s: list[float] = field(default_factory=list)
    first_cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    pss_mib: list[float] = field(default_factory=list)
    update_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    phase_ms: list[float] = field(default_factory=list)
    num_bytes: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in vars(self).items()}

    def spread(self) -> dict[str, list[float]]:
        """Of runs all, of updates the quartiles."""
        runs = {"every_rate": self.rates, "every_first_s": self.first_s, "every_first_cpu_s": self.first_cpu_s}
        return runs | {"update_ms_quartiles": np.percentile(self.update_ms, [25, 50, 75]).tolist()}


def said(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def cases(ranks: Sequence[int], openmpi: Path | None) -> list[Case]:
    """Weak and strong scaling, and fewest and most ranks under another MPI."""
    some, most = ranks[1], ranks[-1]
    out = [Case("weak", n, ENVIRONMENTS, tuple(setting.mpirun(n))) for n in ranks]
    out += [Case("strong", n, ENVIRONMENTS // n, tuple(setting.mpirun(n))) for n in ranks[1:]]
    if openmpi and (openmpi / "mpirun").exists():
        for n in (some, most):
            launcher = (str(openmpi / "mpirun"), "-n", str(n), str(openmpi / "python"))
            out.append(Case("Open MPI", n, ENVIRONMENTS, launcher, tuple(OPENMPI_ENV.items())))
    return out


def repeated(every: list[Case], args: Namespace) -> dict[tuple[str, int], Measured]:
    """All cases in turns."""
    out: dict[tuple[str, int], Measured] = {(case.name, case.ranks): Measured() for case in every}
    for repeat in range(args.repeats):
        for case in every:
            into = out[case.name, case.ranks]
            with tempfile.TemporaryDirectory() as folder:
                run(case, args, Path(folder), into)
            text = f"{into.rates[-1]:,.0f} steps/s, first update after {into.first_s[-1]:.1f} s"
            said(f"repeat {repeat + 1} of {args.repeats}, {case.name}, {case.ranks} ranks: {text}")
    return out


def run(case: Case, args: Namespace, folder: Path, into: Measured) -> None:
    """Train once; look at the processes when the first update is written."""
    path, tag = folder / "run" / "metrics.jsonl", uuid.uuid4().hex
    words = ["-m", "distqtrl", "train", PRESET, "--run", str(path.parent), *FLAGS.split()]
    words += ["--train.updates", str(args.updates), "--environment.local_num", str(case.local_num)]
    with (folder / "errors").open("w+") as errors:
        began = time.perf_counter()
        env = {**os.environ, **dict(case.env), TAG: tag}
        job = subprocess.Popen([*case.launcher, *words], env=env, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while (
                job.poll() is None
                and time.perf_counter() < began + LIMIT_S
                and not (path.exists() and path.stat().st_size)
            ):
                time.sleep(0.005)
            first_s = time.perf_counter() - began
            if job.poll() is None:
                looked(f"{TAG}={tag}".encode(), case.ranks, into)
                into.first_s.append(first_s)
            if job.wait(LIMIT_S):
                raise RuntimeError(f"{case} failed: {errors.seek(0) or errors.read()}")
        finally:
            job.terminate()
    rows = [json.loads(line) for line in path.read_text().splitlines()][max(args.skip - 1, 0) :]
    wall_s, cpu_s = (np.diff([row[key] for row in rows]) for key in ("wall_s", "cpu_s"))
    into.rates.append((rows[-1]["env_steps"] - rows[0]["env_steps"]) / wall_s.sum())
    into.update_ms += (1e3 * wall_s).tolist()
    into.cpu_ms += (1e3 * cpu_s).tolist()
    into.phase_ms += [1e3 * statistics.mean(row["wait_s"]) for row in rows[1:]]
    into.num_bytes += [row["received_bytes"] for row in rows[1:]]


def looked(tag: bytes, ranks: int, into: Measured) -> None:
    """CPU seconds and memory of the ranks so far, from /proc; their mean, of the peak the maximum."""
    cpu_s, peak_mib, pss_mib = [], [], []
    for pid in (pid for pid, rank in tagged(tag).items() if rank is not None):
        with suppress(OSError):
            folder = Path(f"/proc/{pid}")
            ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
            cpu_s.append(sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))
            peak_mib.append(kib(folder / "status", "VmHWM:") / 1024)
            pss_mib.append(kib(folder / "smaps_rollup", "Pss:") / 1024)
    if len(pss_mib) != ranks:
        raise RuntimeError(f"{len(pss_mib)} of {ranks} ranks found")
    into.first_cpu_s.append(statistics.mean(cpu_s))
    into.peak_mib.append(max(peak_mib))
    into.pss_mib.append(statistics.mean(pss_mib))


def kib(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))


def imports(times: int, codes: dict[str, str]) -> dict[str, dict[str, float]]:
    """Wall and CPU seconds of imports in fresh interpreters, without the interpreter's own; medians."""
    out: dict[str, dict[str, float]] = {}
    for name, code in {"": "pass", **codes}.items():
        taken = []
        for _ in range(times):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
            wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            if not done.returncode:
                taken.append((wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
        if taken:
            wall_s, cpu_s = (statistics.median(column) for column in zip(*taken, strict=True))
            out[name] = {"wall_s": wall_s, "cpu_s": cpu_s}
        said(f"import {name or 'nothing'}")
    bare = out.pop("")
    return {name: {key: row[key] - bare[key] for key in row} for name, row in out.items()}
