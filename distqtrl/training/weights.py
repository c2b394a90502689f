"""w_M of this rank's policies: made together, kept until parameters change."""

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from distqtrl.allreduce.agreement import Refused, agreed
from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import ordered_sum
from distqtrl.circuit.qpu import Ledger
from distqtrl.circuit.shift import Ranks
from distqtrl.config.run import Config
from distqtrl.generator import generator
from distqtrl.generator.factors import Layers
from distqtrl.policy.adapter import Adapter
from distqtrl.record.profile import Profile

Result = TypeVar("Result")


class DeviceLost(Refused):
    """A QPU of the job failed while it was in use."""

    exit_code = 1


class Generated:
    """w_M of all policies that this rank trains, made together and kept (with their graph) until parameters change.

    layers_K: what is generated for every policy of the run; numbers: which of them are this rank's; comm: the ranks
    that train the same. An ``adapter`` turns what is generated into the weights of the (one) policy.
    """

    def __init__(
        self, config: Config, layers_K: Sequence[Layers], numbers: Sequence[int], comm: Communicator, profile: Profile
    ) -> None:
        self.comm, self.profile = comm, profile
        self.dtype = torch.float32 if config.train.precision == "float32" else torch.float64
        self.generators = generator.several(config, layers_K, numbers, shares(comm))
        for each in self.generators:
            each.set_precision(self.dtype)
        self.qpu = self.generators[0].qpu
        self.adapter: Adapter | None = None
        backends = {config.qpu.of_rank(r).backend for r in comm.ranks}
        self.external = self.qpu is not None and backends != {"statevector"}  # a device that may fail is in use
        self.num_steps = 0  # of the policies
        self._w_KM: list[Tensor] | None = None
        self._ledger = self._counted()

    def weights(self, place: int) -> Tensor:
        """w_M of the place-th policy here. Raises DeviceLost on every rank when an external device fails on any."""
        if self._w_KM is None:
            self._w_KM = self.on_devices(self._generate)
        return self._w_KM[place]

    def _generate(self) -> list[Tensor]:
        with self.profile("generate"), torch.enable_grad():  # also where who asks first needs no gradient
            self._ledger = self._counted()
            if self.qpu is not None:
                self.qpu.seek(self.num_steps)
            made = generator.weights(self.generators)
            return made if self.adapter is None else [self.adapter(factors_F) for factors_F in made]

    def forget(self, num_steps: int | None = None) -> None:
        """Parameters have changed; so many steps were made, none = as many as before."""
        self._w_KM = None
        if num_steps is not None:
            self.num_steps = num_steps

    def moved(self) -> None:
        """An optimizer step was made."""
        self.forget(self.num_steps + 1)
        with self.profile("generate"):
            for each in self.generators:
                each.whiten_again(self.num_steps)

    def on_devices(self, action: Callable[[], Result]) -> Result:
        """action(), which runs circuits; raises DeviceLost on every rank when an external device fails on any."""
        if not self.external:
            return action()
        try:
            return agreed(self.comm, action)
        except Refused as error:
            raise DeviceLost(str(error)) from None

    def ledger(self) -> np.ndarray:
        """The QPU's ledger as a resumed run needs it: weights that are kept are generated anew."""
        return np.array(self._counted() if self._w_KM is None else self._ledger, dtype=np.int64)

    def set_ledger(self, counts: np.ndarray) -> None:
        """Take over what ``ledger`` gave."""
        if self.qpu is not None:
            self.qpu.ledger = Ledger(*(int(count) for count in counts))

    def _counted(self) -> tuple[int, ...]:
        return (0, 0, 0) if self.qpu is None else astuple(self.qpu.ledger)


def shares(comm: Communicator) -> Ranks:
    """The ranks that may share the circuits of one gradient."""
    return Ranks(comm.rank, comm.ranks, lambda v_S: ordered_sum(comm, v_S))
