"""Energy: counters of a made-up powercap tree, wraps, idle power, once per machine; and why it cannot be measured."""

import itertools
import json
import sys
import time
from types import SimpleNamespace

import pytest
import runs

from distqtrl.allreduce.communicator import Serial
from distqtrl.record import energy

ZONES = {  # folder -> name, watts; the last three are parts of others, or the same again
    "intel-rapl:0": ("package-0", 20.0),
    "intel-rapl:1": ("package-1", 10.0),
    "intel-rapl:0:1": ("dram", 5.0),
    "intel-rapl:0:0": ("core", 15.0),
    "intel-rapl:2": ("psys", 50.0),
    "intel-rapl-mmio:0": ("package-0", 20.0),
}
WATTS = 35.0  # of two packages and their memory
FLAGS = ["--train.updates", "3", "--train.checkpoint_every", "2", "--evaluate.episodes", "2"]


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """A tree of counters; energy_uj is changed by hand."""
    for folder, (name, _) in ZONES.items():
        zone = tmp_path / "powercap" / folder
        zone.mkdir(parents=True)
        for file, text in (("name", name), ("energy_uj", 1_000_000), ("max_energy_range_uj", 100_000_000)):
            (zone / file).write_text(f"{text}\n")
    (tmp_path / "powercap" / "intel-rapl").mkdir()
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setattr(energy, "_idle_w", {})
    return tmp_path / "powercap"


@pytest.fixture
def running(powercap, monkeypatch):
    """The same tree, whose counters grow with time."""
    monkeypatch.setattr(energy, "_joules", lambda zone: ZONES[zone.name][1] * time.monotonic())
    return powercap


def test_packages_and_their_memory_are_counted_once(powercap):
    counters, lacking = energy.rapl()
    assert [counter.name.split()[0] for counter in counters] == ["package-0", "dram", "package-1"]
    assert lacking == ""
    meter = energy.Meter(counters)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("91000000")
    (powercap / "intel-rapl:0:1" / "energy_uj").write_text("3000000")
    assert meter.joules() == pytest.approx(92)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("500000")  # it has wrapped at 100 J
    assert meter.joules() == pytest.approx(92 + 9.5)
    assert meter.joules() == pytest.approx(92 + 9.5)
    meter.close()


def test_a_meter_looks_often_enough(powercap, monkeypatch):
    monkeypatch.setattr(energy, "LOOK_EVERY_S", 0.01)
    meter, file = energy.Meter(energy.rapl()[0]), powercap / "intel-rapl:0" / "energy_uj"
    for joules in (60, 20, 80):  # with a look in between, 59 + 60 + 60; without one, 79
        energy_uj = str(joules * 10**6)
        file.with_suffix(".new").write_text(energy_uj)
        file.with_suffix(".new").replace(file)
        time.sleep(0.2)
    assert meter.joules() == pytest.approx(179)
    meter.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda tree: [(zone / "name").write_text("core") for zone in tree.glob("intel-rapl:*")],
            "there is no counter",
        ),
        (lambda tree: (tree / "intel-rapl:1" / "energy_uj").write_text("much"), "cannot be read (invalid literal"),
        (lambda tree: (tree / "intel-rapl:1" / "energy_uj").unlink(), "cannot be read ([Errno 2]"),
    ],
)
def test_counters_that_cannot_be_read_say_why(powercap, damage, words):
    damage(powercap)
    counters, lacking = energy.rapl()
    assert counters == []
    assert words in lacking
    assert energy.of_calls(lambda: 1) == {"joules_per_action": None, "method": f"not measurable here: {lacking}"}
    told = energy.Energy(Serial())
    assert told.take() == (0, 0, 0)
    facts = told.facts(0, 0, 0)
    assert facts["joules"] is None
    assert facts["method"].startswith("not measurable here: ")
    assert lacking in facts["method"]


def test_counters_of_root_alone(powercap, monkeypatch):
    def closed(zone):
        raise PermissionError(13, "Permission denied", str(zone / "energy_uj"))

    monkeypatch.setattr(energy, "_joules", closed)  # root, as in CI, may read everything
    assert energy.rapl() == ([], f"only root may read {powercap}/intel-rapl:0/energy_uj: ask for chmod a+r")


def trained(folder, *words):
    run = runs.trained(folder / "run", *runs.as_words(runs.tiny(train_steps=None)), *FLAGS, *words)
    return json.loads((run / "result.json").read_text())


def test_a_run_says_its_joules_without_idle_power(running, tmp_path):
    names = tuple(counter.name for counter in energy.rapl()[0])
    energy._idle_w[names] = 10.0
    result = trained(tmp_path)
    told = result["energy"]
    assert 0.5 * result["train_s"] < told["metered_s"] < 1.5 * result["train_s"] + 0.5
    assert told["gross_joules"] == pytest.approx(WATTS * told["metered_s"], rel=0.1, abs=1)
    assert told["joules"] == pytest.approx(told["gross_joules"] - 10 * told["metered_s"])
    assert told["idle_w"] == pytest.approx(10)
    assert told["method"].startswith("dram, package-0, package-1 of 1 machine, whatever ran there, less idle power")
    run, before = tmp_path / "run", told["metered_s"]
    runs.trained(run, *runs.as_words(runs.tiny(train_steps=None)), *FLAGS, "--train.updates", "5")  # it goes on
    assert json.loads((run / "result.json").read_text())["energy"]["metered_s"] > before


@pytest.mark.parametrize(("machines", "watts"), [(["a"], WATTS), (["a", "b"], 2 * WATTS)])
def test_every_machine_once_and_not_every_rank(running, tmp_path, monkeypatch, machines, watts):
    names = itertools.cycle(machines)
    monkeypatch.setattr(energy, "machine", lambda: next(names))
    monkeypatch.setattr(energy, "IDLE_S", 0.05)
    told = trained(tmp_path, "--qpu.replicas", "2", "--environment.local_num", "1")["energy"]
    assert told["gross_joules"] == pytest.approx(watts * told["metered_s"], rel=0.1, abs=1)
    assert told["idle_w"] == pytest.approx(watts, rel=0.1)
    assert f" of {len(machines)} machine{'s' * (len(machines) > 1)}, " in told["method"]


def test_a_counter_that_fails_in_training_does_not_end_it(running, tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "IDLE_S", 0.01)

    calls = itertools.count()

    def failing(zone):
        if next(calls) > 60:
            raise OSError(5, "Input/output error")
        return 1.0

    monkeypatch.setattr(energy, "_joules", failing)
    monkeypatch.setattr(energy, "LOOK_EVERY_S", 0.001)
    told = trained(tmp_path)["energy"]
    reason = "a counter cannot be read any more ([Errno 5] Input/output error)"
    assert told == {"joules": None, "method": f"not measurable here: {reason}"}


def test_an_action_costs_what_is_above_idle(running, monkeypatch):
    """20 W idle, 50 W while it acts, 100 actions a second."""
    clock = [0.0, 0.0]  # seconds, joules

    def passed(seconds, watts):
        clock[0] += seconds
        clock[1] += seconds * watts

    def call():
        passed(0.5, 50)
        return 50

    fake = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda seconds: passed(seconds, 20))
    monkeypatch.setattr(energy, "time", fake)
    monkeypatch.setattr(energy, "_joules", lambda zone: clock[1] if zone.name == "intel-rapl:0" else 0.0)
    told = energy.of_calls(call)
    assert told["seconds"] >= 10
    assert told["joules_per_action"] == pytest.approx(0.3)
    assert (told["idle_w"], told["actions"]) == (pytest.approx(20), 1000)


def test_gpus_in_use_are_counted(powercap, monkeypatch):
    """NVML's Python module, made up: there is no GPU here."""
    calls = []

    class NVMLError(Exception):
        pass

    def handle(uuid):
        if uuid == "GPU-lost":
            raise NVMLError("Not Found")
        return uuid

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: calls.append("init"),
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 5000,  # mJ
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (counter,), lacking = energy.nvml(["GPU-1"])
    assert (counter.read(), counter.wraps_j, lacking) == (5.0, None, "")
    assert energy.nvml(["GPU-1", "GPU-lost"]) == ([], "NVML cannot read the energy of the GPUs (Not Found)")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install 'distqtrl[energy]'" in energy.nvml(["GPU-1"])[1]
    assert energy.nvml([]) == energy.nvml(energy.gpus()) == ([], "")
