"""Typed records that ranks sum in one reduction, and the one cache of w_M."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Serial
from distqtrl.config.sources import preset, with_flags
from distqtrl.training import weights
from distqtrl.training.build import prepare
from distqtrl.training.sums import summed


class Four(Serial):
    """Four ranks that all have the same to say."""

    size, ranks = 4, range(4)

    def __init__(self):
        self.asked = 0

    def allgather(self, x):
        self.asked += 1
        return np.stack([x] * 4)


@dataclass
class Inner:
    square: np.ndarray
    number: np.ndarray


@dataclass
class Outer:
    inner: Inner
    rows: list[Inner]
    empty: np.ndarray


def inner(k):
    return Inner(square=np.arange(4.0).reshape(2, 2) + k, number=np.array(float(k)))


def run(**flags):
    tiny = {"mapping.kind": "mlp", "mapping.chunk": "8", "policy.hidden": "4", "environment.local_num": "2"}
    return prepare(with_flags(preset("cartpole"), {**tiny, **flags}), Serial())


def test_a_record_is_summed_in_one_reduction_and_keeps_its_shapes():
    made = run()
    made.comm = Four()
    total = summed(made, Outer(inner(1), [inner(2), inner(3)], np.zeros(0)), "here")
    assert made.comm.asked == 1
    for found, k in zip((total.inner, *total.rows), (1, 2, 3), strict=True):
        np.testing.assert_array_equal(found.square, 4 * inner(k).square)
        assert (found.number.shape, float(found.number)) == ((), 4 * k)
    assert total.empty.shape == (0,)


def test_a_record_that_is_not_finite_is_refused():
    with pytest.raises(Refused, match="here is not finite on rank 0"):
        summed(run(), inner(np.nan), "here")


@pytest.mark.parametrize(("backend", "agreements"), [("statevector", 0), ("torch", 1)])
def test_ranks_agree_once_per_generation_and_only_on_external_devices(monkeypatch, backend, agreements):
    made = run(**{"qpu.backend": backend})
    asked = []
    monkeypatch.setattr(weights, "agreed", lambda comm, action: asked.append(comm) or action())
    first = made.learner.weights()
    assert made.learner.weights() is first
    assert len(asked) == agreements
    made.policies.generated.forget()
    assert torch.equal(made.learner.weights(), first)
    assert made.learner.weights() is not first
    assert len(asked) == 2 * agreements
