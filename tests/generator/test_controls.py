"""A new source is a function and one entry in SOURCES."""

import numpy as np
import pytest
import torch

from distqtrl.allreduce.communicator import Serial
from distqtrl.config.run import Config
from distqtrl.config.sources import preset, with_flags
from distqtrl.errors import UserError
from distqtrl.generator.controls import SOURCES, Source
from distqtrl.generator.generator import Generator
from distqtrl.training import updates
from distqtrl.training.build import prepare


def squares(rng, num_states, device):
    return torch.from_numpy(rng.normal(size=num_states))


def test_a_source_is_a_function_and_an_entry(monkeypatch):
    entry = Source(squares, "a_S", trained=True, probabilities=lambda a_S, _: a_S**2 / (a_S**2).sum())
    monkeypatch.setitem(SOURCES, "squares", entry)
    flags = {"generator.source": "squares", "mapping.kind": "mlp", "algorithm.rollout_steps": "8"}
    run = prepare(with_flags(preset("cartpole"), flags), Serial())
    assert dict(run.learner.generator.named_parameters()).keys() > {"a_S"}
    before = run.learner.generator.a_S.detach().clone()
    for _ in range(2):
        updates.update(run, [])
    assert not torch.equal(run.learner.generator.a_S, before)
    assert float(run.learner.generator.probabilities().detach().sum()) == pytest.approx(1)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_starts_as_its_entry_says(name):
    values = {"generator": {"source": name, "numbers": 60}, "mapping": {"kind": "mlp", "hidden": (4,)}}
    made, kind = Generator(Config.model_validate(values), [(40, 4), (27, 8)]), SOURCES[name]
    trained = {key for key, _ in made.named_parameters() if not key.startswith("mapping.")}
    if kind.factors is None:
        assert trained == ({kind.tensor} if kind.trained else set())
    assert (made.qpu is not None, made.mapping is not None) == (kind.runs_circuit, kind.generates)
    if kind.generates and not kind.features:
        p_S = made.probabilities().detach().numpy()
        assert p_S.dtype == np.float64
        assert p_S.sum() == pytest.approx(1, abs=1e-12)
        assert p_S.min() >= 0


def test_an_unknown_source_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown generator\.source 'dirct': did you mean 'direct'"):
        prepare(with_flags(preset("cartpole"), {"generator.source": "dirct"}), Serial())
