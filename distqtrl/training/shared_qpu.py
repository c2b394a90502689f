"""One device for the QPUs of several replicas in one process: what they ask at the same time runs as one batch."""

from collections.abc import Callable

import numpy as np

from distqtrl.allreduce.rendezvous import Rendezvous
from distqtrl.circuit.batched import Batched
from distqtrl.circuit.device import Device
from distqtrl.circuit.gates import Array
from distqtrl.circuit.qpu import QPU


def share(qpus: list[QPU], meet: Rendezvous) -> bool:
    """Give QPUs that are alike one device; returns whether they are: backend torch, with the same settings."""
    first = qpus[0]
    if any(q.settings != first.settings or not isinstance(q.device, Batched) for q in qpus):
        return False
    device = first.device
    assert isinstance(device, Batched)
    for number, q in enumerate(qpus):
        q.device = Shared(device, meet, number)
    return True


class Shared(Device):
    """The device as one of the replicas sees it."""

    def __init__(self, device: Batched, meet: Rendezvous, number: int) -> None:
        self.program, self.exact = device.program, device.exact
        self._device, self._meet, self._number = device, meet, number

    def probabilities(self, theta_KP: Array, seeds_K: list[int]) -> Array:
        """p_KS of this replica's K parameter sets."""

        def together(asked: list[tuple[Array, list[int]]]) -> list[Array]:
            theta_NP = np.concatenate([theta for theta, _ in asked])
            p_NS = self._device.probabilities(theta_NP, [seed for _, seeds in asked for seed in seeds])
            return np.split(p_NS, np.cumsum([len(theta) for theta, _ in asked])[:-1])

        p_KS: Array = self._meet(self._number, (theta_KP, seeds_K), together)
        return p_KS

    def differentiable(self, theta_P: Array, method: str) -> tuple[Array, Callable[[Array], Array]]:
        """p_S, and the function v_S -> d(v.p)/d theta_P; all replicas call it, or none."""

        def together(thetas: list[Array]) -> list[tuple[Array, Callable[[Array], Array]]]:
            p_KS, gradients = self._device.differentiable_batch(np.stack(thetas))
            return [(p_S, gradients) for p_S in p_KS]

        p_S, gradients = self._meet(self._number, theta_P, together)
        return p_S, lambda v_S: self._meet(self._number, v_S, lambda vs: gradients(np.stack(vs)))
