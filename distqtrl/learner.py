"""A replica: generator, value network and optimizer, and one optimizer step over all ranks.

Weights are generated once per optimizer step. The policy's loss is differentiated to dL/dw_M, that cotangent
is sent through the generator, and one flat float64 vector holding every gradient is reduced over the ranks.
"""

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.algorithm import ppo, reinforce
from distqtrl.allreduce.communicator import REDUCTIONS, Communicator, Refused, agreed, ordered_sum
from distqtrl.circuit.qpu import Ledger
from distqtrl.circuit.shift import Ranks
from distqtrl.config import Config, UserError
from distqtrl.generator import Generator
from distqtrl.policy import network
from distqtrl.policy.distribution import Head
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.record import Profile

LOSSES = {"ppo": ppo.loss, "reinforce": reinforce.loss}
STATISTICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
REMEDY = "lower the learning rates or check the environment"
Array = npt.NDArray[np.float64]
Result = TypeVar("Result")


class DeviceLost(Refused):
    """A QPU of the job failed while it was in use."""

    exit_code = 1


@dataclass
class Samples:
    """N samples as tensors; observations are normalised."""

    obs_NO: Tensor
    actions: Tensor
    old_log_prob_N: Tensor
    adv_N: Tensor
    returns_N: Tensor

    def at(self, index: Tensor) -> "Samples":
        return Samples(*(getattr(self, f.name)[index] for f in fields(self)))


class Learner:
    """Everything that is trained on this rank. Equal configurations give equal replicas.

    num_environments: of all ranks that share a gradient; the losses of ``algorithm.loss = sum`` are divided by it.
    """

    def __init__(
        self,
        config: Config,
        architecture: Architecture,
        head: Head,
        comm: Communicator,
        profile: Profile,
        num_environments: int,
    ) -> None:
        self.config, self.architecture, self.head = config, architecture, head
        self.num_environments = num_environments
        self.comm, self.profile = comm, profile
        self.dtype = torch.float32 if config.train.precision == "float32" else torch.float64
        ranks = Ranks(comm.rank, comm.size, lambda v_S: ordered_sum(comm, v_S))
        self.generator = Generator(config, architecture.layers, ranks)
        self.generator.set_precision(self.dtype)
        a = config.algorithm
        self.value: nn.Module | None = None
        if a.uses_values:
            self.value = value_network(architecture.num_inputs, a.value_hidden, config.train.seed).to(self.dtype)
        self.log_std = nn.Parameter(torch.full((head.num_outputs,), config.policy.log_std, dtype=self.dtype))
        self.normalizer = Normalizer.fresh(architecture.num_inputs)
        generated = [*self.generator.parameters(), self.log_std]
        groups = [{"params": generated, "lr": a.learning_rate}]
        if self.value is not None:
            groups.append({"params": list(self.value.parameters()), "lr": a.value_learning_rate})
        self.optimizer = torch.optim.Adam(groups, eps=a.adam_epsilon, fused=True)
        self.parameters: list[Tensor] = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
        self.num_steps = 0
        self.external = any(config.qpu.of_rank(r).backend != "statevector" for r in range(comm.size))
        self._w_M: Tensor | None = None
        self._ledger = self._counted()

    def weights(self) -> Tensor:
        """w_M of the present parameters, made once and kept (with its graph) until they change.

        Raises DeviceLost on every rank when a device that is not our own fails on any.
        """
        if self._w_M is None:
            with self.profile("generate"):
                self._ledger = self._counted()
                if self.generator.qpu is not None:
                    self.generator.qpu.seek(self.num_steps)
                self._w_M = self._on_devices(self.generator)
        return self._w_M

    def deployed_weights(self) -> Tensor:
        """w_M as rank 0's QPU measured it, on every rank: what is validated, saved and evaluated."""
        return torch.from_numpy(self.comm.allgather(self.weights().detach().numpy())[0])

    def _on_devices(self, action: Callable[[], Result]) -> Result:
        if not self.external or self.generator.qpu is None:
            return action()
        try:
            return agreed(self.comm, action)
        except Refused as error:
            raise DeviceLost(str(error)) from None

    def values(self, obs_NO: Tensor) -> Tensor:
        """The value network's V (N,) of normalised observations; zeros where there is none."""
        if self.value is None:
            return obs_NO.new_zeros(obs_NO.shape[:-1])
        out: Tensor = self.value(obs_NO)
        return out.squeeze(-1)

    def observed(self, obs: np.ndarray) -> Tensor:
        """Observations as this replica's networks see them."""
        return torch.from_numpy(self.normalizer.apply(obs)).to(self.dtype)

    def step(self, samples: Samples, global_count: float, where: str) -> tuple[Array, float]:
        """One optimizer step; returns the mean of STATISTICS over all ranks' samples and the gradient's norm.

        global_count is the number of samples of this step on all ranks. Raises Refused, naming the rank,
        when a gradient is not finite (UserError on that rank alone while ranks step by themselves).
        """
        averaging = self.config.allreduce.aggregation == "average"
        count = len(samples.adv_N) if averaging else global_count
        divisor = float(count)
        if self.config.algorithm.loss == "sum":
            divisor = self.num_environments
        statistics = self._backward(samples, divisor) * (divisor / count)
        with self.profile("allreduce"):
            flat = np.concatenate([*(_flat(p) for p in self.parameters), statistics])
            total = flat if averaging else self._reduced(flat, where)
            if averaging and not np.isfinite(flat).all():
                raise UserError(f"gradient is not finite at {where}: {REMEDY}")
        with self.profile("optimize"):
            gradient_N = total[: -len(STATISTICS)]
            if self.config.allreduce.aggregation == "sum":
                gradient_N = gradient_N * self.comm.size
            norm = float(np.linalg.norm(gradient_N))
            if self.config.algorithm.max_grad_norm is not None:
                gradient_N = gradient_N * min(1.0, self.config.algorithm.max_grad_norm / (norm + 1e-12))
            for p, part in zip(self.parameters, self._parts(gradient_N), strict=True):
                p.grad = part
            self.optimizer.step()
            self.num_steps += 1
            self._w_M = None
        return total[-len(STATISTICS) :], norm

    def _backward(self, samples: Samples, divisor: float) -> Array:
        """Gradients of sum/divisor on this rank's parameters; returns the statistics' sums/divisor."""
        w_M = self.weights()
        a = self.config.algorithm
        for p in self.parameters:
            p.grad = None
        with self.profile("loss"):
            leaf_M = w_M.detach().requires_grad_()
            layers = network.unpack(self.architecture, leaf_M)
            outputs = network.outputs(self.architecture, layers, samples.obs_NO)
            log_prob_N = self.head.log_prob(outputs, samples.actions, self.log_std)
            policy_loss = LOSSES[a.name](log_prob_N, samples.old_log_prob_N, samples.adv_N, a.clip)
            entropy = self.head.entropy(outputs, self.log_std).sum()
            loss, value_loss = policy_loss - a.entropy * entropy, torch.zeros(())
            if self.value is not None:
                value_loss = 0.5 * ((self.values(samples.obs_NO) - samples.returns_N) ** 2).sum()
                loss = loss + a.value_weight * value_loss
            (loss / divisor).backward()
            with torch.no_grad():
                log_ratio_N = log_prob_N - samples.old_log_prob_N
                kl = (log_ratio_N.exp() - 1 - log_ratio_N).sum()  # http://joschu.net/blog/kl-approx.html
                clipped = ((log_ratio_N.exp() - 1).abs() > a.clip).sum()
            sums = torch.stack([policy_loss, value_loss, entropy, kl, clipped]).detach().double().numpy()
        with self.profile("generate"):
            if w_M.requires_grad:
                self._on_devices(lambda: w_M.backward(leaf_M.grad))
        return sums / divisor

    def _reduced(self, flat: Array, where: str) -> Array:
        return finite_sum(self.comm, self.config.allreduce.reduction, flat, f"gradient or loss at {where}")

    def _parts(self, flat_N: Array) -> list[Tensor]:
        """A flat vector cut into tensors like the parameters."""
        parts = torch.split(torch.from_numpy(flat_N), [p.numel() for p in self.parameters])
        return [part.to(p.dtype).view(p.shape) for p, part in zip(self.parameters, parts, strict=True)]

    def set_progress(self, done: float) -> None:
        """Anneal the learning rates: done is the part of the budget that is spent, 0 to 1."""
        a = self.config.algorithm
        if a.anneal:
            for group, rate in zip(self.optimizer.param_groups, (a.learning_rate, a.value_learning_rate), strict=False):
                group["lr"] = rate * (1 - done)

    def average(self) -> None:
        """Replace every parameter by its mean over the ranks (moments of the optimizer stay local)."""
        with self.profile("allreduce"), torch.no_grad():
            flat = np.concatenate([p.detach().double().numpy().ravel() for p in self.parameters])
            mean = self._reduced(flat, "parameter averaging") / self.comm.size
            for p, part in zip(self.parameters, self._parts(mean), strict=True):
                p.copy_(part)
            self._w_M = None

    def fingerprint(self) -> bytes:
        """The bytes of every parameter, in order."""
        return b"".join(p.detach().numpy().tobytes() for p in self.parameters)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs of this replica."""
        state = {f"generator.{name}": t for name, t in self.generator.state_dict().items()}
        if self.value is not None:
            state |= {f"value.{name}": t for name, t in self.value.state_dict().items()}
        state["log_std"] = self.log_std.detach()
        state["num_steps"] = torch.tensor([self.num_steps])
        for i, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{name}": t for name, t in moments.items()}
        n = self.normalizer
        state["normalizer.count"] = torch.tensor([n.count], dtype=torch.float64)
        return state | {"normalizer.mean_O": torch.from_numpy(n.mean_O), "normalizer.m2_O": torch.from_numpy(n.m2_O)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what ``tensors`` gave; raises KeyError or RuntimeError when names or shapes differ."""
        self.generator.load_state_dict(_below(state, "generator."))
        if self.value is not None:
            self.value.load_state_dict(_below(state, "value."))
        self.log_std.data.copy_(state["log_std"])
        self.num_steps = int(state["num_steps"][0])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(state, "optimizer.").items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.normalizer = Normalizer(
            float(state["normalizer.count"]), state["normalizer.mean_O"].numpy(), state["normalizer.m2_O"].numpy()
        )
        self._w_M = None

    def ledger(self) -> np.ndarray:
        """This rank's ledger as a resumed run needs it: weights that are kept are generated anew."""
        return np.array(self._counted() if self._w_M is None else self._ledger, dtype=np.int64)

    def set_ledger(self, counts: np.ndarray) -> None:
        """Take over what ``ledger`` gave."""
        if self.generator.qpu is not None:
            self.generator.qpu.ledger = Ledger(*(int(count) for count in counts))

    def _counted(self) -> tuple[int, ...]:
        return (0, 0, 0) if self.generator.qpu is None else astuple(self.generator.qpu.ledger)


def finite_sum(comm: Communicator, reduction: str, local_N: Array, what: str) -> Array:
    """Sum over ranks; raises Refused on every rank, naming those whose part is not finite."""
    total_N = REDUCTIONS[reduction](comm, local_N)
    if not np.isfinite(total_N).all():
        finite_R = comm.allgather(np.array([np.isfinite(local_N).all()]))[:, 0]
        ranks = ", ".join(str(rank) for rank in np.flatnonzero(~finite_R)) or "none alone (the sum overflows)"
        raise Refused(f"{what} is not finite on rank {ranks}: {REMEDY}")
    return total_N


def minibatches(
    config: Config, indices: list[int], valid_TB: npt.NDArray[np.bool_], update: int
) -> Iterator[list[Tensor]]:
    """For every epoch, the sample numbers (into the flattened valid samples) of each minibatch.

    Every environment's steps are dealt out by a stream of its own, so the union over ranks does not depend
    on how environments are spread over ranks.
    """
    a = config.algorithm
    epochs, parts = (a.epochs, a.minibatches) if a.name == "ppo" else (1, 1)
    number_TB = np.cumsum(valid_TB.ravel()).reshape(valid_TB.shape) - 1
    columns = [number_TB[valid_TB[:, b], b] for b in range(valid_TB.shape[1])]
    for epoch in range(epochs):
        if parts == 1:
            yield [torch.arange(int(valid_TB.sum()))]
            continue
        dealt: list[list[np.ndarray]] = [[] for _ in range(parts)]
        for index, column in zip(indices, columns, strict=True):
            rng = seeding.stream(config.train.seed, "minibatch", index, update, epoch)
            for part, numbers in zip(dealt, np.array_split(rng.permutation(column), parts), strict=True):
                part.append(numbers)
        yield [torch.from_numpy(np.concatenate(part)) for part in dealt]


def value_network(num_inputs: int, hidden: tuple[int, ...], seed: int) -> nn.Module:
    """A freshly initialised V: observation (N, O) -> (N, 1), tanh between the layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.integer(seed, "initialise", 2))
        layers: list[nn.Module] = []
        for i, o in pairwise((num_inputs, *hidden)):
            layers += [nn.Linear(i, o), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear((num_inputs, *hidden)[-1], 1))


def _flat(p: Tensor) -> Array:
    gradient = torch.zeros_like(p) if p.grad is None else p.grad
    return gradient.detach().double().numpy().ravel()


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
