"""The spectrum of the Jacobian, beside the Jacobian itself."""

import json

import numpy as np
import pytest
import torch

from distqtrl.config.run import Config
from distqtrl.generator import diagnostics, tangent
from distqtrl.generator.diagnostics import diagnose, jacobian
from distqtrl.generator.generator import Generator

LAYERS = [(40, 4), (33, 10)]
SOURCES = ("circuit", "free_vector", "frozen_random", "uniform", "random_subspace", "low_rank", "tensor_train")


def generator(source="circuit", numbers=30, **mapping):
    fields = {"generator": {"source": source, "numbers": numbers}, "mapping": {"chunk": 4, "hidden": (4,), **mapping}}
    made = Generator(Config.model_validate(fields), LAYERS)
    made.set_precision(torch.float64)
    return made


def whole(made):
    """J, a weight at a time."""
    parameters = [*made.of_source(), *made.of_mapping()]
    rows = []
    for w in made():
        gradients = torch.autograd.grad(w, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["mlp", "gnn"])
def test_the_facts_are_those_of_the_jacobian(source, kind):
    made = generator(source, 60 if source == "low_rank" else 30, kind=kind)
    j = whole(made)
    energy = np.linalg.svd(j, compute_uv=False) ** 2
    found = diagnose(made)
    held = np.cumsum(energy) / energy.sum()
    assert found.directions_99 == int((held < 0.99).sum()) + 1
    assert found.participation == pytest.approx(energy.sum() ** 2 / (energy**2).sum(), rel=1e-6)
    share = (j[:, : made.counts()["source"]] ** 2).sum() / energy.sum()
    assert found.source_share == pytest.approx(share, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("whiten", [False, True])
def test_nothing_but_the_circuit_is_trained(whiten):
    mapping = {"kind": "gnn_expansion", "trained": False, "output": "residual"}
    made = Generator(Config.model_validate({"mapping": mapping, "generator": {"whiten": whiten}}), LAYERS)
    assert diagnose(made).source_share == 1.0


def test_of_many_weights_a_sample_stands_for_all():
    many = [(9000, 30)]
    made = Generator(Config.model_validate({"generator": {"source": "random_subspace", "numbers": 20}}), many)
    assert [len(part) for part in jacobian(made)] == [4096, 4096]
    assert diagnose(made).participation == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_a_small_layer_of_large_weights_counts_for_its_part(seed):
    """A sample of all weights alike would hold nine of its thirty, and find nine directions."""
    layers = [(60, 1), (9940, 3000)]
    values = {"generator": {"source": "random_subspace", "numbers": 40}, "train": {"seed": seed}}
    made = Generator(Config.model_validate(values), layers)
    made.set_precision(torch.float64)
    columns, fresh_M = [], made().detach()
    for one in torch.eye(40, dtype=torch.float64):  # the weights are linear in the numbers
        made.x_D.data = one
        columns.append(made().detach() - fresh_M)
    energy = np.linalg.svd(torch.stack(columns), compute_uv=False) ** 2
    found = torch.cat(jacobian(made), dim=1)
    assert found.square().sum().item() == pytest.approx(energy.sum(), rel=0.01)
    assert diagnose(made).participation == pytest.approx(energy.sum() ** 2 / (energy**2).sum(), rel=0.03)


NOISE = {"depolarizing": {"one_qubit": 0.01, "two_qubit": 0.05}}


@pytest.mark.parametrize("qpu", [{"shots": 10}, {"backend": "aer", "device": "density_matrix", "noise": "noise.json"}])
@pytest.mark.parametrize("whiten", [None, "start"])
def test_shots_and_noise_have_no_part_in_them(tmp_path, qpu, whiten):
    (tmp_path / "noise.json").write_text(json.dumps(NOISE))
    if "noise" in qpu:
        qpu = {**qpu, "noise": str(tmp_path / "noise.json")}
    fields = {"mapping": {"chunk": 4, "hidden": (4,)}, "generator": {"whiten": whiten}}
    ideal, real = (Generator(Config.model_validate({**fields, "qpu": each}), LAYERS) for each in ({}, qpu))
    assert diagnose(real) == diagnose(ideal)


def test_a_generator_is_left_as_it_was():
    made = generator()
    before = [p.detach().clone() for p in made.parameters()]
    ledger = made.qpu.ledger.circuits
    diagnose(made)
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))
    assert all(p.grad is None for p in made.parameters())
    assert made.qpu.ledger.circuits == ledger


def test_what_is_too_large_is_made_row_by_row(monkeypatch):
    """As many rows of both layers, each for its part; the directions are at most as many as rows."""
    made = generator(kind="gnn")
    j = whole(made)
    monkeypatch.setattr(diagnostics, "MOST_PRODUCTS", 0)
    rows = [*tangent.rows(40, 8), *(40 + tangent.rows(33, 8))]
    parts = np.sqrt(np.repeat([40 / 8, 33 / 8], 8))[:, None]
    source, mapping = jacobian(made)
    np.testing.assert_allclose(torch.cat([source, mapping], dim=1), parts * j[rows], rtol=1e-6, atol=1e-9)
    assert diagnose(made).directions_99 <= 16
