"""Every installed QPU backend and gradient method on the same random circuits, against our exact engine.

Exact gradients must agree to 1e-8; sampled ones within 5 standard errors of the mean over repeated draws. Under
noise the reference is the device's own noisy result: central differences of its exact probabilities, and for shots
the exact noisy gradient.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from distqtrl.circuit import cuda, qpu
from distqtrl.circuit.ansatz import KINDS
from distqtrl.circuit.qpu import EXACT, QPU
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import UserError

Array = npt.NDArray[np.float64]
METHODS = (*EXACT, "parameter-shift", "spsa")
SEVERAL = {"pennylane": ("default.qubit", "lightning.qubit", "default.mixed")}  # devices of a backend
NOT_COMPARED = ("runtime",)  # noisy shots, of which it has no exact result
NOISE = {"depolarizing": {"one_qubit": 0.002, "two_qubit": 0.02}, "readout": {"0to1": 0.02, "1to0": 0.04}}
SIZES = {"exact": (3, 10), "shift": (3, 6), "noise": (2, 4), "sampled": (2,)}  # qubits
TOLERANCE, STANDARD_ERRORS, SHOTS, REPEATS = 1e-8, 5.0, 500, 30


@dataclass(frozen=True)
class Row:
    """One backend, kind of result and gradient method. ``error`` is absolute, or in standard errors when sampled."""

    backend: str
    device: str | None
    result: str  # exact, shots, noise, noise + shots
    method: str
    status: str  # agrees, differs, or why it does not exist
    qubits: int = 0
    error: float = 0.0

    @property
    def sampled(self) -> bool:
        """Whether results are drawn at random, so that errors are counted in standard errors."""
        return "shots" in self.result or self.method == "spsa"


def devices() -> list[dict[str, Any]]:
    """Every backend that has exact results to compare with, some with several devices; cuda where there is a GPU."""
    left_out = NOT_COMPARED if cuda.available() else (*NOT_COMPARED, "cuda")
    compared = [backend for backend in qpu.BACKENDS if backend not in left_out]
    named = [(backend, device) for backend in compared for device in SEVERAL.get(backend, (None,))]
    return [{"backend": backend, **({"device": device} if device else {})} for backend, device in named]


def rows() -> Iterator[Row]:
    """One row after the other; a backend that is not installed gives one row that says so."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "noise.json"
        path.write_text(json.dumps(NOISE))
        for device in devices():
            name = {"backend": device["backend"], "device": device.get("device")}
            try:
                qpu.build(Circuit(), Qpu(**device), 2)
            except UserError as error:
                yield Row(**name, result="", method="", status=str(error))
                continue
            for result, extra in _results(device, path).items():
                for method in METHODS:
                    yield Row(**name, result=result, method=method, **_compared({**device, **extra}, result, method))


def _results(device: dict[str, Any], noise: Path) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {"exact": {}, "shots": {"shots": SHOTS}}
    if device["backend"] == "aer":
        results |= {"noise": {"noise": str(noise)}, "noise + shots": {"noise": str(noise), "shots": SHOTS}}
    return results


def _compared(settings: dict[str, Any], result: str, method: str) -> dict[str, Any]:
    """Status, largest number of qubits and worst error of one method."""
    sampled = "shots" in result or method == "spsa"
    sizes = SIZES["sampled" if sampled else "noise" if result == "noise" else "exact" if method in EXACT else "shift"]
    sizes = SIZES["shift"] if settings.get("device") == "default.mixed" and not sampled else sizes  # 4^n numbers
    worst, limit = 0.0, STANDARD_ERRORS if sampled else TOLERANCE
    for n in sizes:
        circuit, rng = random_circuit(n), np.random.default_rng(n)
        spsa = {"spsa_step": 0.01} if method == "spsa" else {}
        try:
            device = qpu.build(circuit, Qpu(**settings, **spsa, gradient=method), n)
        except UserError as error:
            return {"status": "no" if "does not exist for" in str(error) else str(error)}
        theta_P, v_S = rng.uniform(-np.pi, np.pi, device.num_angles), rng.normal(size=2**n)
        reference_P = _reference(circuit, settings, theta_P, v_S)
        distance = _standard_errors if sampled else _difference
        worst = max(worst, distance(device, theta_P, v_S, reference_P))
    return {"status": "agrees" if worst <= limit else "differs", "qubits": sizes[-1], "error": worst}


def _reference(circuit: Circuit, settings: dict[str, Any], theta_P: Array, v_S: Array) -> Array:
    """The gradient without shots, computed in another way."""
    n = len(v_S).bit_length() - 1
    if settings.get("noise") is None:
        return qpu.build(circuit, Qpu(), n).probabilities(theta_P)[1](v_S)
    exact = qpu.build(circuit, Qpu(backend=settings["backend"], noise=settings["noise"]), n)
    return _central_differences(exact, theta_P, v_S)


def _central_differences(device: QPU, theta_P: Array, v_S: Array, h: float = 2e-3) -> Array:
    """Fourth-order central differences of v.p."""

    def values(offset: float) -> Array:
        steps_PP = offset * np.eye(len(theta_P))
        return np.array([device.probabilities(theta_P + step_P)[0] @ v_S for step_P in steps_PP])

    return (8 * (values(h) - values(-h)) - (values(2 * h) - values(-2 * h))) / (12 * h)


def _difference(device: QPU, theta_P: Array, v_S: Array, reference_P: Array) -> float:
    return float(abs(device.probabilities(theta_P)[1](v_S) - reference_P).max())


def _standard_errors(device: QPU, theta_P: Array, v_S: Array, reference_P: Array) -> float:
    """The largest distance of the mean over repeated draws, in standard errors of that mean."""
    draws = []
    for step in range(REPEATS):
        device.seek(step)
        draws.append(device.probabilities(theta_P)[1](v_S))
    error_P = np.std(draws, axis=0, ddof=1) / np.sqrt(REPEATS)
    distance_P = abs(np.mean(draws, axis=0) - reference_P)
    return float((distance_P / np.maximum(error_P, TOLERANCE)).max())


def random_circuit(num_qubits: int) -> Circuit:
    """All kinds of gates on random wires, each without and (from two qubits on) with a control."""
    rng = np.random.default_rng(num_qubits)
    gates: list[tuple[Any, ...]] = [("u3", wire) for wire in range(num_qubits)]
    for kind in rng.permutation(list(KINDS)):
        target, *others = (int(wire) for wire in rng.permutation(num_qubits))
        gates += [(str(kind), target), (str(kind), target, others[0])]
    return Circuit(ansatz="gates", gates=tuple(gates), layers=1)


def table(found: list[Row]) -> str:
    """The support matrix as Markdown: qubits up to which a method was compared and agrees."""
    lines = [f"| backend | device | result | {' | '.join(METHODS)} |", "|---" * (3 + len(METHODS)) + "|"]
    keys = list(dict.fromkeys((row.backend, row.device, row.result) for row in found))
    for backend, device, result in keys:
        cells = {row.method: row for row in found if (row.backend, row.device, row.result) == (backend, device, result)}
        if "" in cells:
            lines.append(f"| {backend} | {device or ''} | {cells[''].status} |" + " |" * len(METHODS))
            continue
        shown = (_cell(cells[method]) for method in METHODS)
        lines.append(f"| {backend} | {device or ''} | {result} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    return {"agrees": f"n = {row.qubits}", "no": ""}.get(row.status, f"**{row.status}**")


def as_json(found: list[Row]) -> list[dict[str, Any]]:
    """The rows as JSON has them."""
    return [asdict(row) for row in found]
