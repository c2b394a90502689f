"""Where the probabilities come from: the circuit, and the controls that answer "is it the circuit?".

source           probabilities                                   trained
circuit          of the parameterized circuit                    theta_P, phi_Q
frozen_circuit   of the circuit at its initial angles            phi_Q
frozen_random    exponential random numbers, normalised          phi_Q     (a random state's statistics)
free_vector      softmax of S free numbers                       S, phi_Q
uniform          1/S                                             phi_Q
random_subspace  none: d free numbers, which an expansion reads, whatever mapping.kind (arXiv 1804.08838)    d
low_rank         none: a fresh policy + B A in every layer (arXiv 2106.09685)    at most d
tensor_train     none: a fresh policy + a tensor train (arXiv 1509.06569)    at most d
direct           none: w_M itself, initialised like nn.Linear    M
equal_mlp        like direct, of a policy with one hidden layer and about as many weights as ``circuit`` trains

d is ``generator.numbers``, or what ``circuit`` trains. A new source is a function of its start, perhaps one of its
probabilities, and an entry in ``SOURCES``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl.circuit import qpu
from distqtrl.circuit.qpu import QPU
from distqtrl.generator.factors import Layers, LowRank, TensorTrain

Start = Callable[[np.random.Generator, int, QPU | None], Tensor]


def themselves(p_S: Tensor, device: QPU | None) -> Tensor:
    """Probabilities that are kept as they are."""
    return p_S


@dataclass(frozen=True)
class Source:
    """How a tensor starts, and what probabilities it stands for.

    start(rng, S or d, qpu) -> the tensor, float64; probabilities(tensor, qpu) -> p_S, differentiable in it.
    """

    start: Start
    tensor: str = "p_S"  # its name among the generator's parameters, or buffers where it is not trained
    trained: bool = False
    probabilities: Callable[[Tensor, QPU | None], Tensor] = themselves
    runs_circuit: bool = False
    generates: bool = True  # false: the weights are trained themselves
    features: bool = False  # its numbers, padded with zeros, are what the mapping reads of probabilities
    factors: Callable[[Layers, int], nn.Module] | None = None  # of at most d numbers: () -> the change of w_M


def angles(rng: np.random.Generator, num_states: int, device: QPU | None) -> Tensor:
    """theta_P, uniform in +-pi."""
    assert device is not None
    return torch.from_numpy(rng.uniform(-np.pi, np.pi, device.num_angles))


def measured(theta_P: Tensor, device: QPU | None) -> Tensor:
    """p_S of the circuit."""
    assert device is not None
    return qpu.probabilities(device, theta_P)


def measured_once(rng: np.random.Generator, num_states: int, device: QPU | None) -> Tensor:
    """p_S of the circuit at its initial angles."""
    return _normalised(measured(angles(rng, num_states, device), device))


def free(rng: np.random.Generator, num_states: int, device: QPU | None) -> Tensor:
    """Logarithms of exponential numbers: a random state's statistics."""
    return torch.from_numpy(np.log(rng.exponential(size=num_states)))


def random(rng: np.random.Generator, num_states: int, device: QPU | None) -> Tensor:
    """A random state's probabilities."""
    return _normalised(torch.from_numpy(rng.exponential(size=num_states)))


def uniform(rng: np.random.Generator, num_states: int, device: QPU | None) -> Tensor:
    """1/S."""
    return _normalised(torch.ones(num_states, dtype=torch.float64))


def zeros(rng: np.random.Generator, num: int, device: QPU | None) -> Tensor:
    """Free numbers, none of which has moved."""
    return torch.zeros(num, dtype=torch.float64)


def padded(x_D: Tensor, device: QPU | None) -> Tensor:
    """Free numbers, and zeros up to a power of two, at least 2."""
    width = 2 ** max(1, (len(x_D) - 1).bit_length())
    return torch.cat([x_D, x_D.new_zeros(width - len(x_D))])


def fresh_weights(layers: Layers) -> Tensor:
    """Weights and biases of every layer uniform in +-1/sqrt(fan_in), as torch.nn.Linear draws them."""
    return torch.cat([(torch.rand(size) * 2 - 1) / fan_in**0.5 for size, fan_in in layers])


def _normalised(p_S: Tensor) -> Tensor:
    return p_S / p_S.sum()


def _softmax(logits_S: Tensor, device: QPU | None) -> Tensor:
    return torch.softmax(logits_S, dim=0)


def _nothing(rng: np.random.Generator, num_states: int, device: QPU | None) -> Tensor:
    raise NotImplementedError("weights are trained themselves")


SOURCES = {
    "circuit": Source(angles, "theta_P", trained=True, probabilities=measured, runs_circuit=True),
    "frozen_circuit": Source(measured_once, runs_circuit=True),
    "frozen_random": Source(random),
    "free_vector": Source(free, "logits_S", trained=True, probabilities=_softmax),
    "uniform": Source(uniform),
    "random_subspace": Source(zeros, "x_D", trained=True, probabilities=padded, features=True),
    "low_rank": Source(_nothing, trained=True, generates=False, factors=LowRank),
    "tensor_train": Source(_nothing, trained=True, generates=False, factors=TensorTrain),
    "direct": Source(_nothing, "w_M", trained=True, generates=False),
    "equal_mlp": Source(_nothing, "w_M", trained=True, generates=False),
}
