"""Every installed backend agrees with the exact engine, and docs/backends.md says which."""

import dataclasses
import json
from pathlib import Path

import pytest

from distqtrl.cli import main as cli
from distqtrl.doctor import gradients

pytestmark = pytest.mark.xdist_group("compared")  # once for all of them
PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


@pytest.fixture(scope="module")
def compared():
    pytest.importorskip("pennylane")
    pytest.importorskip("qiskit_aer")
    return list(gradients.rows())


def test_all_agree(compared):
    assert [row for row in compared if row.status not in ("agrees", "no")] == []
    found = {(row.backend, row.result, row.method) for row in compared if row.status == "agrees"}
    assert {("statevector", "exact", "adjoint"), ("torch", "exact", "adjoint")} <= found
    assert {("pennylane", "shots", "parameter-shift"), ("aer", "noise + shots", "parameter-shift")} <= found


def test_page_has_the_table(compared):
    page = PAGE.read_text()
    without_gpu = [row for row in compared if row.backend != "cuda"]  # the page is that of a machine without one
    start = "<!-- distqtrl doctor --gradients -->\n"
    assert page[page.index(start) + len(start) : page.index("<!-- end -->")].strip() == gradients.table(without_gpu)


def test_command(monkeypatch, capfd):
    wrong, *others = [gradients.Row("statevector", None, "exact", m, "no") for m in gradients.METHODS]
    wrong = dataclasses.replace(wrong, status="differs", qubits=3, error=0.5)
    missing = gradients.Row("aer", None, "", "", "qpu.backend aer needs qiskit-aer")
    monkeypatch.setattr(gradients, "rows", lambda: iter([wrong, *others, missing]))
    assert cli.main(["doctor", "--gradients"]) == 1
    out = capfd.readouterr().out
    assert "statevector exact adjoint: differs, 0.5 (absolute), up to n = 3" in out
    assert "| statevector |  | exact | **differs** |  |  |  |" in out
    assert "| aer |  | qpu.backend aer needs qiskit-aer | | | | |" in out
    assert cli.main(["doctor", "--gradients", "--json"]) == 1
    assert [row["status"] for row in json.loads(capfd.readouterr().out)] == [
        "differs",
        "no",
        "no",
        "no",
        missing.status,
    ]
