"""Energy of the machines of a run, less what they take when idle: RAPL of CPUs and memory, NVML of the GPUs in use.

    joules = (counters at the end - counters at the start) - idle power * time

The counters are a machine's, whatever else runs there. RAPL: Documentation/power/powercap in the Linux kernel. NVML:
nvmlDeviceGetTotalEnergyConsumption. Idle power is measured for IDLE_S while all ranks sleep, once per process.
"""

import json
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import allgather_bytes

POWERCAP = Path("/sys/class/powercap")
BOOT = Path("/proc/sys/kernel/random/boot_id")  # one per machine, however many containers share it
IDLE_S = 1.0
LOOP_S = 10.0  # of one action, again and again
LOOK_EVERY_S = 30.0  # a counter of 262 kJ wraps after 9 minutes at 500 W
NOWHERE = "not measurable here"

_idle_w: dict[tuple[str, ...], float] = {}  # of counters, by their names: measured once per process


@dataclass(frozen=True)
class Counter:
    """A counter that only grows: ``read`` says so many joules; where it comes to ``wraps_j``, it is 0 again."""

    name: str
    read: Callable[[], float]
    wraps_j: float | None = None


def rapl() -> tuple[list[Counter], str]:
    """The counters of all CPU packages and of their memory; where they cannot be read, none and why.

    ``intel-rapl:0`` is what AMD's packages are called, too. Other zones are parts of a package, the same package by
    another way (``intel-rapl-mmio``), or the whole board (``psys``), and would be counted twice.
    """
    found = []
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith("package") and name != "dram":
                continue
            wraps_j = int((zone / "max_energy_range_uj").read_text()) * 1e-6
            counter = Counter(f"{name} ({zone.name})", partial(_joules, zone), wraps_j)
            counter.read()
        except PermissionError as error:
            return [], f"only root may read {error.filename}: ask for chmod a+r"
        except (OSError, ValueError) as error:
            return [], f"{zone} cannot be read ({' '.join(str(error).split())})"
        found.append(counter)
    return found, "" if found else f"there is no counter of a CPU package in {POWERCAP}"


def _joules(zone: Path) -> float:
    return int((zone / "energy_uj").read_text()) * 1e-6


def _scaled(read: Callable[[], int], unit_j: float) -> float:
    return unit_j * read()


def gpus() -> list[str]:
    """The GPUs that this process can use, as NVML calls them; none where it uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    properties = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [f"GPU-{each.uuid}" for each in properties]


def nvml(uuids: Sequence[str]) -> tuple[list[Counter], str]:
    """The counters of these GPUs; where one cannot be read, none and why."""
    if not uuids:
        return [], ""
    try:
        import pynvml
    except ImportError:
        return [], "the energy of GPUs needs nvidia-ml-py: pip install 'distqtrl[energy]'"
    found = []
    try:
        pynvml.nvmlInit()
        for uuid in uuids:
            told_mj = partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, pynvml.nvmlDeviceGetHandleByUUID(uuid))
            found.append(Counter(uuid, partial(_scaled, told_mj, 1e-3)))
            found[-1].read()
    except pynvml.NVMLError as error:
        return [], f"NVML cannot read the energy of the GPUs ({error})"
    return found, ""


class Meter:
    """The joules that counters have counted since the meter was made, across any number of their wraps.

    A thread looks at them often enough. A counter that cannot be read any more is a ``problem``, and never an error.
    """

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.problem, self._counters, self._joules = "", list(counters), 0.0
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._last: list[float] | None = None
        self.joules()
        if counters:
            threading.Thread(target=self._look, daemon=True).start()

    def joules(self) -> float:
        """All of them until now."""
        with self._lock:
            try:
                now = [counter.read() for counter in self._counters]
            except Exception as error:  # of a file, or of NVML's
                self.problem = f"a counter cannot be read any more ({' '.join(str(error).split())})"
                return self._joules
            for counter, before, after in zip(self._counters, self._last or now, now, strict=True):
                self._joules += grown(before, after, counter.wraps_j)
            self._last = now
            return self._joules

    def close(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self.joules()


def grown(before: float, after: float, wraps_j: float | None) -> float:
    """What a counter has counted between two looks, of which at most one wrap lies between.

    >>> grown(10.0, 30.0, 100.0), grown(90.0, 20.0, 100.0)
    (20.0, 30.0)
    """
    return after - before if after >= before or wraps_j is None else after - before + wraps_j


class Energy:
    """The energy of all machines of a job, each metered by its first rank. All ranks make it and ask it together."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        told = [json.loads(text) for text in allgather_bytes(comm, json.dumps([machine(), gpus()]).encode())]
        mine = [rank for rank, (name, _) in enumerate(told) if name == told[comm.rank][0]]
        leads = comm.rank == mine[0]
        counters: list[Counter] = []
        lacking = ""
        if leads:
            counters, lacking = _counters(sorted({gpu for rank in mine for gpu in told[rank][1]}))
        unknown = bool(counters) and _names(counters) not in _idle_w
        if comm.allgather(np.array([float(unknown)])).any():  # then all ranks are quiet
            _measure_idle(counters)
        self._idle_w = _idle_w.get(_names(counters), 0.0)
        facts = [leads, _names(counters), f"{platform.node()}: {lacking}" if lacking else ""]
        every = [json.loads(text) for text in allgather_bytes(comm, json.dumps(facts).encode())]
        every = [each for each in every if each[0]]
        self._names = sorted({name.partition(" ")[0] for _, names, _ in every for name in names})
        self._lacking = next((why for _, _, why in every if why), "")
        self._machines, self.measured = len(every), all(names for _, names, _ in every)
        self.problem = "" if self.measured else self._lacking
        self._meter = Meter(counters if self.measured else [])
        self._taken_j, self._taken_at = 0.0, time.monotonic()

    def take(self) -> tuple[float, float, float]:
        """Joules and idle joules of all machines, and seconds, since the last time or the start; zeros if unknown."""
        now, joules = time.monotonic(), self._meter.joules()
        took_s = now - self._taken_at
        mine = np.array([joules - self._taken_j, self._idle_w * took_s, float(bool(self._meter.problem))])
        self._taken_j, self._taken_at = joules, now
        if not self.measured:
            return 0.0, 0.0, 0.0
        total = self._comm.allgather(mine).sum(axis=0)
        if total[2]:
            self.measured, self.problem = False, self._meter.problem or "a counter of another machine failed"
            return 0.0, 0.0, 0.0
        return float(total[0]), float(total[1]), took_s

    def close(self) -> None:
        """Read no more."""
        self._meter.close()

    def facts(self, gross_j: float, idle_j: float, metered_s: float) -> dict[str, Any]:
        """What result.json says of these: ``joules`` is none where they were not measured, ``method`` says why."""
        if not metered_s:
            return {"joules": None, "method": f"{NOWHERE}: {self.problem or 'nothing was metered'}"}
        machines = f"{self._machines} machine{'s' if self._machines > 1 else ''}"
        names = ", ".join(self._names) or "counters of an earlier part of the run"
        method = f"{names} of {machines}, whatever ran there, less idle power measured for {IDLE_S:g} s"
        if self._lacking and self.measured:
            method += f"; not counted: {self._lacking}"
        return {
            "joules": gross_j - idle_j,
            "gross_joules": gross_j,
            "idle_w": idle_j / metered_s,
            "metered_s": metered_s,
            "method": method + (f"; not to the end: {self.problem}" if self.problem else ""),
        }


def of_calls(call: Callable[[], int]) -> dict[str, Any]:
    """Joules of an action on this machine's CPU: ``call`` makes as many actions as it returns, for LOOP_S or longer.

    Idle power is measured before and after, as long in all. ``joules_per_action`` is none where ``method`` says why.
    """
    counters, problem = rapl()
    if problem:
        return _unmeasured(problem)
    meter = Meter(counters)
    try:
        idle_j, idle_s = _spent(meter, LOOP_S / 2, lambda: time.sleep(LOOP_S / 2))
        actions = 0

        def some() -> None:
            nonlocal actions
            actions += call()

        joules, took_s = _spent(meter, LOOP_S, some)
        more_j, more_s = _spent(meter, LOOP_S / 2, lambda: time.sleep(LOOP_S / 2))
    finally:
        meter.close()
    if meter.problem:
        return _unmeasured(meter.problem)
    idle_w = (idle_j + more_j) / (idle_s + more_s)
    net_j = joules - idle_w * took_s
    if net_j <= 0:
        return _unmeasured("the machine was busier while it should have been idle")
    return {
        "joules_per_action": net_j / actions,
        "actions": actions,
        "seconds": took_s,
        "idle_w": idle_w,
        "method": f"{', '.join(counter.name for counter in counters)}, whatever ran there, less idle power",
    }


def _unmeasured(why: str) -> dict[str, Any]:
    return {"joules_per_action": None, "method": f"{NOWHERE}: {why}"}


def machine() -> str:
    """What tells this machine from others, also from inside a container."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return platform.node()


def _counters(uuids: Sequence[str]) -> tuple[list[Counter], str]:
    """The counters of this machine that can be read, and why others cannot."""
    found = [rapl(), nvml(uuids)]
    return [counter for counters, _ in found for counter in counters], "; ".join(why for _, why in found if why)


def _names(counters: Sequence[Counter]) -> tuple[str, ...]:
    return tuple(counter.name for counter in counters)


def _measure_idle(counters: Sequence[Counter]) -> None:
    meter = Meter(counters)
    joules, took_s = _spent(meter, IDLE_S, lambda: time.sleep(IDLE_S))
    meter.close()
    _idle_w[_names(counters)] = joules / took_s


def _spent(meter: Meter, least_s: float, call: Callable[[], None]) -> tuple[float, float]:
    """Joules and seconds of calls, until so many seconds are over."""
    before, began = meter.joules(), time.monotonic()
    while True:
        call()
        took_s = time.monotonic() - began
        if took_s >= least_s:
            return meter.joules() - before, took_s
