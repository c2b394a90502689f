"""w_M of this rank's policies: made together, kept until parameters change."""

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import torch
from torch import Tensor

from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import ordered_sum
from distqtrl.circuit.qpu import Ledger
from distqtrl.circuit.shift import Ranks
from distqtrl.generator import generator
from distqtrl.generator.generator import Generator
from distqtrl.record.profile import Profile


class DeviceLost(Refused):
    """A QPU of the job failed while it was in use."""

    exit_code = 1


class Generated:
    """w_M of all policies that this rank trains, made together and kept (with their graph) until parameters change."""

    def __init__(self, generators: Sequence[Generator], profile: Profile) -> None:
        self.generators, self.profile = list(generators), profile
        self.qpu = generators[0].qpu
        self.num_steps = 0  # of the policies
        self._w: list[Tensor] | None = None
        self._ledger = self._counted()

    def weights(self, number: int) -> Tensor:
        """Of one of them. May raise DeviceFailure."""
        if self._w is None:
            with self.profile("generate"), torch.enable_grad():  # also where who asks first needs no gradient
                self._ledger = self._counted()
                if self.qpu is not None:
                    self.qpu.seek(self.num_steps)
                self._w = generator.weights(self.generators)
        return self._w[number]

    def forget(self, num_steps: int) -> None:
        """Parameters have changed; so many steps were made."""
        self._w, self.num_steps = None, num_steps

    def ledger(self) -> np.ndarray:
        """The QPU's ledger as a resumed run needs it: weights that are kept are generated anew."""
        return np.array(self._counted() if self._w is None else self._ledger, dtype=np.int64)

    def set_ledger(self, counts: np.ndarray) -> None:
        """Take over what ``ledger`` gave."""
        if self.qpu is not None:
            self.qpu.ledger = Ledger(*(int(count) for count in counts))

    def _counted(self) -> tuple[int, ...]:
        return (0, 0, 0) if self.qpu is None else astuple(self.qpu.ledger)


def shares(comm: Communicator) -> Ranks:
    """The ranks that may share the circuits of one gradient."""
    return Ranks(comm.rank, comm.size, lambda v_S: ordered_sum(comm, v_S))
