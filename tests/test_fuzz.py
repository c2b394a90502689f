"""Every kind of file, changed by chance: refused in one line, or read as what it says (``fuzzing.py`` runs more)."""

import random

import pytest
from fuzzing import subjects, verdict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    found = {}
    for subject in subjects(tmp_path_factory.mktemp("files")):
        found.setdefault(subject.name.split()[0], []).append(subject)
    return found


@pytest.mark.parametrize(
    "kind", ["policy", "program", "checkpoint", "config", "manifest", "search", "result", "metrics"]
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_a_changed_file_is_refused_or_means_what_it_says(every, kind, seed):
    subject = random.Random(seed).choice(every[kind])
    assert verdict(subject, seed) in ("refused", "as it says"), subject.name
