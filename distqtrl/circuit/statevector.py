"""Our exact device, for one circuit and for batches: compiled kernels, and what runs where.

Circuits of a batch run eight at a time while their states fit a cache (``interleaved``), else one after another
(``sweep``), and in parts on as many threads as this process has for torch (train.threads) and cores. A circuit's bits
are the same in all these ways: they depend on no neighbour, no size of a batch and no number of threads.

Machine code is made for what a circuit uses, real or complex, when it is first used, and kept on disk.
"""

import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from distqtrl.circuit import compiled, interleaved, shift, sweep
from distqtrl.circuit.ansatz import Gate, Program, program
from distqtrl.circuit.device import Device, Gradient
from distqtrl.circuit.gates import Array, Floats
from distqtrl.circuit.memory import machine_memory, refuse_memory
from distqtrl.circuit.plan import SINGLE, plan, whole
from distqtrl.circuit.simd import LANES
from distqtrl.config.run import refuse
from distqtrl.config.stages import Qpu
from distqtrl.errors import UserError

SMALL = 1 << SINGLE  # basis states: above, psi and lambda of LANES circuits leave the first cache
FEWEST = 3  # circuits that are faster interleaved, with the other lanes idle, than one after another
PATIENCE = 2048  # circuits that come in batches before code for batches is compiled
PART = 1 << 16  # numbers of the states of a part
WORK = 1 << 20  # numbers times steps that are worth a second thread, which takes 0.1 ms to wake up
AROUND = 64  # numbers that take as long as what comes around a step of a circuit: its angles, matrices, sums
STATES = 4  # of one circuit: psi, a copy and lambda that are un-computed, and p and v


class Part(NamedTuple):
    """Circuits ``first`` to ``end`` of a batch, which run in one call of ``module``."""

    module: ModuleType
    first: int
    end: int

    def taken(self, rows_K: Array) -> Array:
        """This part's rows; the last once more for every lane that would have none."""
        rows = np.ascontiguousarray(rows_K[self.first : self.end])
        idle = -len(rows) % LANES if self.module is interleaved else 0
        return np.concatenate([rows, np.repeat(rows[-1:], idle, axis=0)]) if idle else rows


class StateVector(Device):
    """Our exact device; shots are drawn from the exact distribution.

    Raises UserError for a state that does not fit the machine's memory.
    """

    def __init__(self, circuit: Program, settings: Qpu) -> None:
        refuse(settings, "statevector", ("device", "options", "noise"))
        self.program, self.shots = circuit, settings.shots
        self.exact: tuple[str, ...] = () if settings.shots else ("adjoint",)
        self._plan, self._came = plan(circuit), 0
        self._like, self._num_states = _like(self._plan.components, settings.precision), 1 << circuit.num_qubits
        self._blocked = not whole(self._plan)
        self._numbers = self._plan.components * self._num_states
        needed = settings.replicas * STATES * float(self._numbers * self._like.itemsize)
        refuse_memory(circuit, needed, "qpu.backend statevector", machine_memory())
        _compile(sweep, self._plan.components, settings.precision)

    def probabilities(self, theta_KP: Array, seeds_K: list[int]) -> Array:
        """p_KS of K parameter sets; with shots, relative frequencies drawn from seeds_K."""
        parts = self._parts(len(theta_KP))
        p_KS = np.concatenate(self._each(lambda part: self._values(part, theta_KP)[0], parts))
        return p_KS if self.shots is None else sampled(p_KS, self.shots, seeds_K)

    def differentiable(self, theta_P: Array, method: str) -> tuple[Array, Gradient]:
        """p_S, and the function v_S -> d(v.p)/d theta_P; there is one method."""
        part = Part(sweep, 0, 1)
        p_KS, after = self._values(part, theta_P[None])
        return p_KS[0], lambda v_S: self._gradients(part, after, v_S[None])[0]

    def differentiable_batch(self, theta_KP: Array) -> tuple[Array, Gradient]:
        """p_KS of K parameter sets, and the function v_KS -> d(v.p)/d theta_KP.

        States are kept for the gradient while they are few numbers (shift.BATCH), else they are made once more.
        Raises UserError when the batch does not fit the machine's memory.
        """
        parts, theta_KP = self._parts(len(theta_KP)), theta_KP.copy()
        keeps = len(theta_KP) * self._numbers <= shift.BATCH
        p_N, after_N = zip(*self._each(lambda part: self._values(part, theta_KP, keeps), parts), strict=True)

        def gradient(v_KS: Array) -> Array:
            def of(part: Part, after: Any) -> Array:
                return self._gradients(part, after or self._values(part, theta_KP)[1], v_KS)

            return np.concatenate(self._each(of, parts, after_N))

        return np.concatenate(p_N), gradient

    def _values(self, part: Part, theta_KP: Array, keeps: bool = True) -> tuple[Array, Any]:
        """p_KS of a part, and what its gradient needs."""
        p_KS, *after = part.module.values(self._plan, part.taken(theta_KP), self._num_states, *self._room())
        return p_KS[: part.end - part.first], after if keeps else None

    def _gradients(self, part: Part, after: Any, v_KS: Array) -> Array:
        gradient_KP: Array = part.module.gradients(self._plan, *after, part.taken(v_KS), *self._room())
        return gradient_KP[: part.end - part.first]

    def _room(self) -> tuple[Floats, Floats | None]:
        return self._like, sweep.blocks(self._plan, self._like) if self._blocked else None

    def _parts(self, num: int) -> list[Part]:
        """A batch in parts: of a bounded size, and one for every thread."""
        needed = num * 3 * 8.0 * self._num_states  # p, v and a copy on the way
        refuse_memory(self.program, needed, f"a batch of {num:,} circuits", machine_memory())
        abreast = num - (num % LANES if num % LANES < FEWEST else 0) if self._interleaves(num) else 0
        most = self._threads(num)
        parts = []
        for module, first, end, unit in ((interleaved, 0, abreast, LANES), (sweep, abreast, num, 1)):
            units = -(-(end - first) // unit)
            pieces = min(units, max(most, units * unit * self._numbers // PART))
            for piece in range(pieces):
                cut = [first + unit * (units * i // pieces) for i in (piece, piece + 1)]
                parts.append(Part(module, cut[0], min(cut[1], end)))
        return parts

    def _interleaves(self, num: int) -> bool:
        """Whether to run eight at a time; code for that is compiled when enough circuits came in batches."""
        self._came += num if num > 1 else 0
        if num < FEWEST or self._num_states > SMALL or self._blocked:
            return False
        name = _name(interleaved, self._plan.components, self._like.dtype.name)
        if self._came < PATIENCE and not compiled.ready(name):
            return False
        _compile(interleaved, self._plan.components, self._like.dtype.name)
        return True

    def _threads(self, num: int) -> int:
        return threads() if num * (self._numbers + AROUND) * len(self._plan.step_J) >= WORK else 1

    def _each(self, function: Callable[..., Any], parts: list[Part], *others: Sequence[Any]) -> list[Any]:
        """function of every part, on threads where there are several; kernels do not hold the interpreter."""
        most = self._threads(parts[-1].end)
        if len(parts) == 1 or most == 1:
            return [function(*items) for items in zip(parts, *others, strict=True)]
        return list(_pool(os.getpid(), most).map(function, parts, *others))


def threads() -> int:
    """How many threads run circuits: as many as torch has, where this process may use as many cores."""
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS has none; a container may refuse to tell
        cores = os.cpu_count() or 1
    return min(torch.get_num_threads(), cores)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """A process's threads; a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, "circuits")


def _like(components: int, precision: str) -> Floats:
    """What tells the kernels the precision of states, and by its axes whether they are complex."""
    return np.empty((0,) * components, precision)


def _name(module: ModuleType, components: int, precision: str) -> str:
    return f"{module.__name__.rpartition('.')[2]}-{('real', 'complex')[components - 1]}-{precision}"


def ready(precision: str) -> bool:
    """Whether nothing that one circuit may need is left to compile."""
    return all(compiled.ready(_name(sweep, components, precision)) for components in (1, 2))


@cache
def _compile(module: ModuleType, components: int, precision: str) -> None:
    """Compile kernels, which happens on their first call, by circuits of a single qubit.

    Raises UserError when the code cannot be kept, or Numba shall not compile.
    """
    if compiled.CONFIG.DISABLE_JIT:
        raise UserError("NUMBA_DISABLE_JIT is set, and circuits run compiled: unset it")
    smallest = plan(program(1, [Gate("ry" if components == 1 else "u3", 0)]))

    def first_call() -> None:
        like = _like(components, precision)
        p_KS, *after = module.values(smallest, np.zeros((LANES, smallest.num_angles)), 2, like, None)
        module.gradients(smallest, *after, p_KS, like, None)

    try:
        compiled.once(_name(module, components, precision), first_call)
    except OSError as error:
        raise UserError(
            f"cannot keep compiled code on disk ({error}): set NUMBA_CACHE_DIR to a folder with room"
        ) from None
    except (EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"compiled code in {compiled.FOLDER} is damaged ({error}): remove that folder") from None


def sampled(p_KS: Array, shots: int, seeds_K: list[int]) -> Array:
    """Relative frequencies of shots drawn from each distribution."""
    rows = zip(p_KS, seeds_K, strict=True)
    draws = [np.random.Generator(np.random.Philox(seed)).multinomial(shots, p_S / p_S.sum()) for p_S, seed in rows]
    return np.stack(draws) / shots
