"""What runs a circuit: the base of all devices."""

from collections.abc import Callable
from typing import ClassVar

from distqtrl.circuit.ansatz import Program
from distqtrl.circuit.gates import Array
from distqtrl.config.stages import Qpu

Gradient = Callable[[Array], Array]


class Device:
    """Base of devices: one that has exact gradients names them in ``exact``, best first, and has ``differentiable`` or
    ``differentiable_batch``."""

    program: Program
    exact: tuple[str, ...] = ()  # empty with shots or noise
    noisy: ClassVar[bool] = False  # gates are decomposed before the shift rule, whatever the settings say
    one_job: ClassVar[bool] = False  # rank 0 runs the circuits of a gradient that ranks share
    billed: bool = False  # circuits leave this machine, for a device that somebody waits or pays for
    shot_us: float | None = None  # microseconds of a shot, where the device says them

    def __init__(self, program: Program, settings: Qpu) -> None:
        self.program = program

    def probabilities(self, theta_KP: Array, seeds_K: list[int]) -> Array:
        """p_KS of K parameter sets; shots are drawn from seeds_K. May raise anything when the device fails."""
        raise NotImplementedError

    def differentiable(self, theta_P: Array, method: str) -> tuple[Array, Gradient]:
        """p_S, and the function v_S -> d(v.p)/d theta_P, by one of the exact methods."""
        made = self.differentiable_batch(theta_P[None])
        if made is None:
            raise NotImplementedError
        p_KS, gradients = made
        return p_KS[0], lambda v_S: gradients(v_S[None])[0]

    def differentiable_batch(self, theta_KP: Array) -> tuple[Array, Gradient] | None:
        """p_KS, and the function v_KS -> d(v.p)/d theta_KP; None where the device takes one at a time."""
        return None

    def confirm(self) -> None:
        """Let a device that is billed send circuits from now on; others always do."""
