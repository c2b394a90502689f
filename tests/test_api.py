"""``import distqtrl``: what the command line does, called from a program, alone and under mpirun."""

import copy
import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import runs
import torch
from needs import soon

import distqtrl
from distqtrl.cli import main as cli
from distqtrl.config.run import save
from distqtrl.quantize.formats import Bits

TINY = {**runs.TINY, "generator.source": "direct", "algorithm.rollout_steps": 8, "environment.local_num": 4}
TINY |= {"train.steps": 96, "train.checkpoint_every": 1}
LONG = {**TINY, "train.steps": 10**7, "train.checkpoint_every": 10**6}
QUANTUM = ("mpi4py", "pennylane", "numba", "distqtrl.circuit", "distqtrl.mapping")
WORLDS = ("gymnasium", "pettingzoo", "distqtrl.environment")


def config(changes=()):
    return distqtrl.preset("cartpole", {**TINY, **dict(changes)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and its result."""
    run = tmp_path_factory.mktemp("api") / "run"
    return run, distqtrl.train(config(), run)


def loaded(code):
    """The modules of a fresh interpreter after this code."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    return json.loads(subprocess.check_output([sys.executable, "-c", script], text=True))


def test_the_import_costs_nothing():
    modules = loaded("import distqtrl; names = dir(distqtrl); distqtrl.__version__")
    assert not {"numpy", "torch", "mpi4py", "pydantic"} & set(modules)
    assert [name for name in modules if name.startswith("distqtrl")] == ["distqtrl"]
    modules = loaded("import distqtrl; distqtrl.preset('cartpole', {'train.seed': 1}); distqtrl.rank()")
    assert not {"torch", "mpi4py"} & set(modules)


def test_what_it_offers():
    assert set(distqtrl.__all__) <= set(dir(distqtrl))
    for name in distqtrl.__all__:
        assert getattr(distqtrl, name) is not None
    with pytest.raises(AttributeError, match="module 'distqtrl' has no attribute 'trian'"):
        distqtrl.trian  # noqa: B018


def test_export_is_a_function_and_a_package(tmp_path):
    """In whatever order the two are met."""
    for first in ("import distqtrl", "import distqtrl.export", "from distqtrl import export\nimport distqtrl"):
        modules = loaded(f"{first}\nassert callable(distqtrl.export)\nassert distqtrl.export.__path__")
        assert "numpy" not in modules
    from distqtrl.export.options import Options

    assert Options.__module__ == "distqtrl.export.options"
    with pytest.raises(distqtrl.UserError, match="did you mean 'onnx'"):
        distqtrl.export(tmp_path, tmp_path / "new", targets="onxx")


def test_a_run_is_that_of_the_command_line(trained, tmp_path):
    run, result = trained
    (tmp_path / "same.json").write_text(save(config()))
    assert cli.main(["train", "--config", str(tmp_path / "same.json"), "--run", str(tmp_path / "run"), "--json"]) == 0
    for name in ("policy.safetensors", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()
    assert {path.name for path in run.iterdir()} == {path.name for path in (tmp_path / "run").iterdir()}
    assert result == {"run": str(run), **json.loads((run / "result.json").read_text())}
    assert (result["status"], result["env_steps"], result["evaluation"]["episodes"]) == ("complete", 96, 2)


def test_train_is_idempotent(trained, tmp_path, capfd):
    whole, result = trained
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert distqtrl.train(config(), run) == {**result, "run": str(run)}
    for path in (run / "result.json", run / "policy.safetensors", sorted((run / "checkpoints").iterdir())[-1]):
        path.unlink()  # as if it had been killed
    assert distqtrl.train(config(), str(run), resume=True)["update"] == 3
    assert (run / "policy.safetensors").read_bytes() == (whole / "policy.safetensors").read_bytes()
    capfd.readouterr()
    assert distqtrl.train(distqtrl.read(run, {"train.steps": 160}), run)["update"] == 5
    assert f"distqtrl: {run} resumes with train.steps 96 -> 160\n" in capfd.readouterr().err


def test_without_a_directory_one_is_made(tmp_path):
    result = distqtrl.train(config({"train.directory": str(tmp_path), "train.seed": 7, "train.steps": 32}))
    (run,) = tmp_path.iterdir()
    assert result["run"] == str(run)
    assert run.name.startswith("CartPole-v1-seed7-")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda run: distqtrl.preset("cartpol"), "unknown preset 'cartpol': did you mean 'cartpole'?"),
        (lambda run: distqtrl.preset("cartpole", {"train.sed": 1}), "'train.sed': did you mean 'train.seed'?"),
        (lambda run: distqtrl.preset("cartpole", {"train.seed": "1"}), "train.seed = '1': Input should be a"),
        (lambda run: distqtrl.preset(str(run)), "is the name of a file or folder: use --config "),
        (lambda run: distqtrl.preset(run / "config.json"), "is the name of a file or folder: use --config "),
        (lambda run: distqtrl.preset(None), "unknown preset None: "),
        (lambda run: distqtrl.preset(["cartpole"]), "unknown preset ['cartpole']: did you mean 'cartpole'?"),
        (lambda run: distqtrl.preset("cartpole", [1]), "changes = [1]: give a table of keys and values"),
        (lambda run: distqtrl.read(None), "path = None: give a path, as text or a pathlib.Path"),
        (lambda run: distqtrl.read("a\0b"), r"path = 'a\x00b': give a path"),
        (lambda run: distqtrl.read(run / "policy.safetensors"), "cannot read configuration "),
        (lambda run: distqtrl.read(run / "nowhere"), "cannot read configuration "),
        (lambda run: distqtrl.train("cartpole"), "train takes a configuration, not 'cartpole': make one"),
        (lambda run: distqtrl.train(config(), 5), "directory = 5: give a path"),
        (lambda run: distqtrl.train(config(), b"runs"), "directory = b'runs': give a path"),
        (lambda run: distqtrl.train(config(), "a\0b"), r"directory = 'a\x00b': give a path"),
        (lambda run: distqtrl.train(config({"train.seed": 1}), run), "was started with train.seed = 0, not 1"),
        (lambda run: distqtrl.train(config(), run / "new", resume=True), "in which there is no run: give"),
        (lambda run: distqtrl.train(config(), resume=True), "resume = True with no directory"),
        (lambda run: distqtrl.train(config({"environment.id": "CartPol-v1"}), run / "new"), "CartPol"),
        (lambda run: distqtrl.train(config({"train.steps": None}), run / "new"), "train.steps none needs"),
        (lambda run: distqtrl.train(config(), run / "new", yes="no"), "yes = 'no': give True or False"),
        (lambda run: distqtrl.train(config(), run / "new", resume=1), "resume = 1: give True or False"),
        (lambda run: distqtrl.export(run, run / "new", joules="no"), "joules = 'no': give True or False"),
        (lambda run: distqtrl.verify(run, netlists="no"), "netlists = 'no': give True or False"),
        (lambda run: distqtrl.load(5), "path = 5: give a path"),
        (lambda run: distqtrl.load(run / "nowhere"), "cannot read "),
        (lambda run: distqtrl.load(run.parent), "cannot read "),
        (lambda run: distqtrl.load(run / "config.json"), "cannot read "),
        (lambda run: distqtrl.export(run, run), "exists: give"),
        (lambda run: distqtrl.export(run, run / "new", targets="c,cc"), "--target 'cc': did you mean 'c'?"),
        (lambda run: distqtrl.export(run, run / "new", bits={"core": 9}), "core=9: must be a whole number from 1 to 8"),
        (lambda run: distqtrl.export(run, run / "new", bits={"core": 3.5}), "'core=3.5': write core=8"),
        (lambda run: Bits(core=3.5), "core=3.5: must be a whole number"),
        (lambda run: distqtrl.verify(run, tool_limit=float("inf")), "tool_limit = inf: give seconds"),
        (lambda run: distqtrl.verify(run, tool_limit=True), "tool_limit = True: give seconds"),
        (lambda run: distqtrl.load("\ud800"), "no file can have that name"),
        (lambda run: distqtrl.export(run, run / "new", per="layer"), "unknown per 'layer'"),
        (lambda run: distqtrl.export(run, run / "new", vectors=0), "vectors = 0: give a whole number, 1 or more"),
        (lambda run: distqtrl.export(run, run / "new", vectors=np.ones(3)), "vectors = array([1., 1., 1.]): "),
        (lambda run: distqtrl.verify(run, tool_limit=-1), "tool_limit = -1: give seconds, more than 0"),
        (lambda run: distqtrl.export(run, run / "new", vectors=True), "vectors = True: give a whole number"),
        (lambda run: distqtrl.export(run, run / "new", tool_limit=-1), "tool_limit = -1: give seconds, more than 0"),
        (lambda run: distqtrl.export(run, run / "new", tool_limit="x"), "tool_limit = 'x': give seconds, more than 0"),
        (lambda run: distqtrl.export(torch.nn.Sequential(torch.nn.Tanh()), run / "new"), "source = Sequential( (0): "),
        (lambda run: distqtrl.load(run).save(None), "path = None: give a path"),
        (lambda run: distqtrl.train(changed(steps="x"), run / "new"), "train.steps = 'x': Input should be a valid int"),
        (lambda run: distqtrl.export(run, run / "new", targets=5), "targets = 5: give names, such as ['c', 'verilog']"),
        (lambda run: distqtrl.export(run, run / "new", targets=[1]), "targets = [1]: give names"),
        (lambda run: distqtrl.export(run, run / "new", bits=4), "bits = 4: give a table of numbers of bits"),
        (lambda run: distqtrl.export(run, run / "new", parallel=3), "parallel = 3: give lanes and columns"),
        (lambda run: distqtrl.export(run, run / "new", parallel="32x4"), "parallel = '32x4': give lanes and columns"),
        (lambda run: distqtrl.read("x" * 5000), "xxx...: File name too long: give another path"),
        (lambda run: distqtrl.train(config(), "x" * 5000), "xxx...: File name too long: give another path"),
        (lambda run: distqtrl.export(run, run / "new", per=5), "unknown per 5"),
        (lambda run: distqtrl.export(run, None), "folder = None: give a path"),
        (lambda run: distqtrl.export(None, run / "new"), "source = None: give a path"),
        (lambda run: distqtrl.export(run / "nowhere", run / "new"), "cannot read "),
        (lambda run: distqtrl.verify(run), "manifest.json"),
        (lambda run: distqtrl.verify(run, targets=7), "targets = 7: give names"),
        (lambda run: distqtrl.verify(7), "folder = 7: give a path"),
        (lambda run: distqtrl.describe(None), "config = None: give a configuration, or the name of a preset"),
        (lambda run: distqtrl.describe("cartpol"), "did you mean 'cartpole'?"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(trained, call, line):
    before = sorted(trained[0].rglob("*"))
    with pytest.raises(distqtrl.UserError) as caught:
        call(trained[0])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(trained[0].rglob("*")) == before


def changed(**values):
    """A configuration that pydantic did not look at."""
    return config().model_copy(update={"train": config().train.model_copy(update=values)})


@contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "state", [double, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu"), lambda: torch.device("meta")]
)
def test_what_a_program_has_set_in_torch_is_its_own(trained, tmp_path, state):
    with state():
        before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        distqtrl.train(config(), tmp_path / "run")
        assert before == (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))
    assert distqtrl.load(tmp_path / "run").act(torch.zeros(1, 4, requires_grad=True)).shape == (1,)
    assert (tmp_path / "run" / "policy.safetensors").read_bytes() == (trained[0] / "policy.safetensors").read_bytes()


def test_a_seed_of_numpy_is_a_seed(trained, tmp_path):
    distqtrl.train(changed(seed=np.int64(0)), tmp_path / "run")
    distqtrl.load(tmp_path / "run").save(str(tmp_path / "again.safetensors"))
    assert (tmp_path / "again.safetensors").read_bytes() == (trained[0] / "policy.safetensors").read_bytes()


@pytest.mark.parametrize(
    "wrong", [None, 1.0, [[0, 0, 0]], np.zeros((2, 5)), [["a"] * 4], [[0] * 4, [0] * 3], [], "abcd"]
)
def test_observations_that_a_policy_cannot_read(trained, wrong):
    policy = distqtrl.load(trained[0])
    assert policy.act([[0, 0, 0, 0]]) == policy.act(np.zeros((1, 4), np.float32))  # a list is as good
    with pytest.raises(distqtrl.UserError, match=r"observations are .*: give numbers of shape \(B, 4\)"):
        policy.act(wrong)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 4).to_sparse(), torch.zeros(2, 4, device="meta")],
    ids=["sparse", "meta"],
)
def test_tensors_without_values_are_no_observations(trained, tensor):
    with pytest.raises(
        distqtrl.UserError, match=r"observations are a tensor of torch.float32, torch\..*: give a dense"
    ):
        distqtrl.load(trained[0]).act(tensor)


def test_a_tensor_of_bfloat16_is_an_observation(trained):
    policy, obs_BO = distqtrl.load(trained[0]), torch.linspace(-1, 1, 80).reshape(20, 4).bfloat16()
    np.testing.assert_array_equal(policy.act(obs_BO.requires_grad_()), policy.act(obs_BO.detach().double()))


@pytest.mark.parametrize("again", [lambda policy: pickle.loads(pickle.dumps(policy)), copy.deepcopy])
def test_a_policy_goes_to_other_processes(trained, again):
    policy, obs_BO = distqtrl.load(trained[0]), np.random.default_rng(0).normal(size=(100, 4))
    np.testing.assert_array_equal(again(policy).act(obs_BO), policy.act(obs_BO))


def test_a_policy_needs_neither_environment_nor_circuit(trained, tmp_path):
    policy = distqtrl.load(trained[0])
    assert isinstance(policy, distqtrl.Policy)
    assert policy.act(np.zeros((3, 4))).shape == (3,)
    strange = dataclasses.replace(policy, environment={**policy.environment, "id": "strange:Strange-v0"})
    strange.save(tmp_path / "policy.safetensors")
    (tmp_path / "strange.py").write_text("raise SystemExit('it was imported')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport distqtrl, numpy\n"
    code += f"distqtrl.load({str(tmp_path)!r}).act(numpy.zeros((3, 4)))"
    assert not [name for name in loaded(code) if name.startswith((*QUANTUM, *WORLDS, "strange"))]
    with pytest.raises(distqtrl.UserError, match="imports and runs the module 'strange'"):
        distqtrl.export(strange, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_several_policies_are_a_dict(trained, tmp_path):
    policy = distqtrl.load(trained[0])
    for name, agents in (("red", ("red_0", "red_1")), ("blue", ("blue_0",))):
        dataclasses.replace(policy, agents=agents).save(tmp_path / f"policy-{name}.safetensors")
    policies = distqtrl.load(tmp_path)
    assert sorted(policies) == ["blue_0", "red_0", "red_1"]
    assert policies["red_0"] is policies["red_1"]
    assert distqtrl.load(tmp_path / "policy-blue.safetensors").agents == ("blue_0",)
    with pytest.raises(
        distqtrl.UserError, match=r"has several policies: give one of policy-blue.safetensors, policy-red"
    ):
        distqtrl.export(tmp_path, tmp_path / "exported")


def test_export_and_verify(trained, tmp_path):
    said, small = [], {"vectors": 500, "episodes": 2}
    about = distqtrl.export(trained[0], tmp_path / "run", bits={"core": 3}, say=said.append, **small)
    assert json.loads(json.dumps(about)) == json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (about["targets"], about["bits"]["core"]) == (["c"], 3)
    assert len(said) == len(about["checks"])
    again = distqtrl.export(distqtrl.load(trained[0]), tmp_path / "policy", bits={"core": 3}, **small)
    assert (again["program"], again["policy"]["sha256"]) == (about["program"], about["policy"]["sha256"])
    checks = {check.target: check.status for check in distqtrl.verify(tmp_path / "run", targets=["c"], **small)}
    assert (checks["c"], checks["closed loop"]) == ("equal", "equal")
    (tmp_path / "run" / "policy.c").write_text("int x;")
    checks = {check.target: check.status for check in distqtrl.verify(tmp_path / "run", **small)}
    assert (checks["files"], checks["c"]) == ("DIFFERENT", "not checked")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"parallel": (3, 2)}, "--parallel 3x2: write LANESxCOLUMNS, lanes a multiple of columns"),
        ({"parallel": (4, -2)}, "--parallel 4x-2"),
        ({"parallel": (32,)}, "--parallel 32"),
        ({"part": "virtex"}, "--part virtex: known parts are xc7a15t"),
        ({"vectors": 0}, "vectors = 0"),
    ],
)
def test_an_export_that_cannot_be(trained, tmp_path, wrong, says):
    with pytest.raises(distqtrl.UserError, match=says):
        distqtrl.export(trained[0], tmp_path / "exported", targets="verilog", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_describe():
    facts = distqtrl.describe("cartpole")
    assert facts == distqtrl.describe(distqtrl.preset("cartpole"))
    assert (facts["environment"], facts["policy_weights"]) == ("CartPole-v1", 898)


def test_the_process_stays_the_users(tmp_path):
    """Also after a mistake; a thread, which gets no signals, can train."""
    mine, results = lambda *_: None, []
    before = {s: signal.signal(s, mine) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)}
    threads = torch.get_num_threads()
    try:
        signal.setitimer(signal.ITIMER_REAL, 1000)
        torch.set_num_threads(2)
        distqtrl.train(config({"train.steps": 32}), tmp_path / "run")
        with pytest.raises(distqtrl.UserError):
            distqtrl.train(config(), tmp_path / "run" / "config.json")
        assert torch.get_num_threads() == 2
        assert all(signal.getsignal(s) is mine for s in before)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
        thread = threading.Thread(target=lambda: results.append(distqtrl.train(config(), tmp_path / "thread")))
        thread.start()
        thread.join()
        assert results[0]["status"] == "complete"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        torch.set_num_threads(threads)
        for s, handler in before.items():
            signal.signal(s, handler)


def sent(signal_number):
    """Send this process a signal as soon as a training has begun to listen for it."""
    before = signal.getsignal(signal_number)

    def send():
        if soon(lambda: signal.getsignal(signal_number) is not before, 60):
            os.kill(os.getpid(), signal_number)

    threading.Thread(target=send, daemon=True).start()


def test_signals_save_the_run(tmp_path):
    run = tmp_path / "run"
    sent(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"saved after .* resume with {run}"):
        distqtrl.train(config(LONG), run)
    (first,) = (run / "checkpoints").iterdir()
    sent(signal.SIGTERM)
    result = distqtrl.train(config(LONG), run, resume=True)
    assert (result["status"], result["signal"], result["exit_code"]) == ("stopped", "SIGTERM", 143)
    assert len(list((run / "checkpoints").iterdir())) == 2
    assert first.exists()


PROGRAM = f"""
import sys, distqtrl
case, folder = sys.argv[1:]
rank, first = distqtrl.rank(), distqtrl.rank() == 0
log = open(f"{{folder}}/log-{{rank}}", "w")
def config(**changes):
    return distqtrl.preset("cartpole", {{**{TINY}, "allreduce.timeout_s": 60.0, **changes}})
soon = config(**{{"allreduce.timeout_s": 2.0}})
def refused(*args, **keywords):
    try:
        distqtrl.train(*args, **keywords)
    except distqtrl.UserError as error:
        print("refused:", error, file=log, flush=True)
if case == "several":
    refused(config(**{{"train.seed": rank}}), folder + "/differs")
    refused(config(), f"{{folder}}/{{rank}}")
    refused("cartpole" if rank else config(), folder + "/run")
    for steps in (64, 128):
        result = distqtrl.train(config(**{{"train.steps": steps}}), folder + "/run")
        print(result["update"], result["ranks"], len(distqtrl.load(folder + "/run").w_M), file=log, flush=True)
elif case == "never":
    first and distqtrl.train(soon, folder + "/run")
elif case == "once":
    distqtrl.train(config(), folder + "/run")
    first and refused(soon, folder + "/again")
    first and refused(config(), folder + "/again")
elif case == "raises":
    distqtrl.train(config(), folder + "/run")
    if not first:
        raise RuntimeError("on rank 1 alone")
    distqtrl.train(config(), folder + "/again")
"""


def program(launcher, folder, case):
    (folder / "program.py").write_text(PROGRAM)
    return launcher(2, [folder / "program.py", case, folder])


@pytest.mark.xdist_group("ranks")
def test_ranks_train_several_times_and_are_told_what_differs(forked_ranks, tmp_path):
    code, _, err = program(forked_ranks, tmp_path, "several")
    assert code == 0, err
    alike = "on rank 1 of 2: give every rank the same"
    for rank in range(2):
        own = (tmp_path / f"log-{rank}").read_text().splitlines()
        assert own[0] == f"refused: configurations differ {alike} one, seed included"
        assert own[1] == f"refused: directory or resume differ {alike} ones"
        assert own[2].startswith("refused: rank 1: train takes a configuration, not 'cartpole'")
        assert [line.split()[:2] for line in own[3:]] == [["1", "2"], ["2", "2"]]
    assert {path.name for path in tmp_path.iterdir()} == {"program.py", "run", "log-0", "log-1"}


@pytest.mark.xdist_group("ranks")
def test_a_rank_that_does_not_call_is_noticed(forked_ranks, tmp_path):
    code, _, err = program(forked_ranks, tmp_path, "never")
    assert code != 0
    (line,) = (line for line in err.splitlines() if line.startswith("distqtrl: "))
    assert line.startswith(
        "distqtrl: rank 0: no word from the other ranks for 2 s (allreduce.timeout_s): not all ranks "
    )
    missing = "not all ranks called distqtrl.train: rank 0 waited 2 s for them (allreduce.timeout_s)"
    code, _, _ = program(forked_ranks, tmp_path, "once")
    assert code != 0
    first, second = (tmp_path / "log-0").read_text().splitlines()
    assert first.startswith(f"refused: {missing}")
    assert second.startswith("refused: an earlier distqtrl.train failed on rank 0 alone")
    assert not (tmp_path / "again").exists()


@pytest.mark.xdist_group("ranks")
def test_an_exception_on_one_rank_ends_the_job(mpirun, tmp_path):
    code, _, err = program(mpirun, tmp_path, "raises")
    assert code != 0
    assert err.count("Traceback") == 1
    assert "RuntimeError: on rank 1 alone" in err
