"""Policy files with a right SHA-256 that hold no policy: each is refused in one line that says what is wrong."""

import json
import re

import numpy as np
import pytest
import torch
from fuzzing import policies, put

from distqtrl.cli import main as cli
from distqtrl.errors import UserError
from distqtrl.files import tensors as tensorfile
from distqtrl.policy import policy_file

DEEP = "[" * 200_000 + "]" * 200_000


def said(path, value):
    """A change of the description: path such as head.kind; a value of None removes the key."""

    def change(about, tensors):
        *above, last = path.split(".")
        for key in above:
            about = about[key]
        if value is None:
            del about[last]
        else:
            about[last] = value

    return change


def held(name, made):
    """A change of a tensor; made: what becomes of it, None = it is left out."""

    def change(about, tensors):
        tensors[name] = made(tensors.get(name))
        if tensors[name] is None:
            del tensors[name]

    return change


def with_number(number, at=0):
    def made(t):
        t = t.copy()
        t[at] = number
        return t

    return made


def three_actions(about, tensors):
    about["head"]["num_actions"] = 3


def three_outputs(about, tensors):
    about["architecture"]["num_outputs"] = about["head"]["num_actions"] = 3


def unseen(about, tensors):
    about["count"] = 0.0


DISCRETE = [
    ("architecture.activation = 'sigmoid'", said("architecture.activation", "sigmoid")),
    ("architecture.activation = 'TANH'", said("architecture.activation", "TANH")),
    ("a head of 3 for a network of 2 outputs", three_actions),
    ("w_M has the shape (26,), not (31)", three_outputs),
    ("head.kind = 'softmax'", said("head.kind", "softmax")),
    ("head.kind = None", said("head.kind", None)),
    ("head: lacks the key 'high'", said("head.kind", "gaussian")),
    ("num_actions = 0", said("head.num_actions", 0)),
    ("num_actions = -1", said("head.num_actions", -1)),
    ("num_actions = 1000000000000000000", said("head.num_actions", 10**18)),
    ("num_actions = True", said("head.num_actions", True)),
    ("num_actions = '2'", said("head.num_actions", "2")),
    ("num_actions = 2.5", said("head.num_actions", 2.5)),
    ("start = 1000000000000000000", said("head.start", 10**18)),
    ("head: lacks the key 'start'", said("head.start", None)),
    ("head: unknown key 'temperature'", said("head.temperature", 1.0)),
    ("architecture.num_inputs = 0", said("architecture.num_inputs", 0)),
    ("architecture.hidden.0 = -4", said("architecture.hidden", [-4])),
    ("architecture.hidden.0 = 1000000000000000000", said("architecture.hidden", [10**18])),
    ("w_M has the shape", said("architecture.hidden", [2**31, 2**31])),
    ("w_M has the shape", said("architecture.hidden", [])),
    ("at most 100 items", said("architecture.hidden", [1] * 1000)),
    ("unknown key 'architecture.bias'", said("architecture.bias", False)),
    ("lacks the key 'architecture'", said("architecture", None)),
    ("architecture = 3", said("architecture", 3)),
    ("count = -1", said("count", -1)),
    ("count = True", said("count", True)),
    ("count = 0.5 observations", said("count", 0.5)),
    ("count = 0.0 observations", unseen),
    ("NaN is not a number", said("count", float("nan"))),
    ("Infinity is not a number", said("count", float("inf"))),
    ("environment: unknown key 'colour'", said("environment.colour", "red")),
    ("environment: kwargs = [1]", said("environment.kwargs", [1])),
    ("environment: frames = True", said("environment.frames", True)),
    ("environment: num_actions = 0", said("environment.num_actions", 0)),
    ("environment: id = 4", said("environment.id", 4)),
    ("environment: id = 'xxx", said("environment.id", "x" * 10**6)),
    ("environment lacks the key 'frames'", said("environment.frames", None)),
    ("environment = []", said("environment", [])),
    ("agents", said("agents", ["a", "a"])),
    ("agents.0 = 1", said("agents", [1])),
    ("agents.0 = ''", said("agents", [""])),
    ("agents.0 = 'xxx", said("agents", ["x" * 10**6])),
    ("lacks the key 'agents'", said("agents", None)),
    ("origin.seed", said("origin.seed", [0])),
    ("unknown key 'licence'", said("licence", "mine")),
    ("quantize lacks the key 'aware'", said("quantize", {})),
    ("w_M holds a number that is not finite", held("w_M", with_number(np.nan))),
    ("w_M holds a number that is not finite", held("w_M", with_number(-np.inf))),
    ("w_M holds float16", held("w_M", np.float16)),
    ("w_M holds float64", held("w_M", np.float64)),
    ("w_M holds bool", held("w_M", lambda t: t > 0)),
    ("w_M holds int64", held("w_M", np.int64)),
    ("w_M has the shape (1, 26)", held("w_M", lambda t: t[np.newaxis])),
    ("w_M has the shape (0,)", held("w_M", lambda t: t[:0])),
    ("w_M has the shape (25,)", held("w_M", lambda t: t[:-1])),
    ("tensor 'w_M' is missing", held("w_M", lambda t: None)),
    ("tensor 'bias' does not belong there", held("bias", lambda t: np.zeros(1))),
    ("tensor 'scales_S' does not belong there", held("scales_S", lambda t: np.ones(3))),
    ("mean_O has the shape (2,)", held("mean_O", lambda t: t[:2])),
    ("mean_O holds float32", held("mean_O", np.float32)),
    ("mean_O holds a number that is not finite", held("mean_O", with_number(np.inf))),
    ("are not a mean and a sum of squares", held("m2_O", with_number(-1.0))),
    ("are not a mean and a sum of squares", held("mean_O", with_number(1e307))),
]
BOUNDED = [
    ("head: low and high are not bounds", said("head.low", [3.0, 0.0])),
    ("head: low and high are not bounds", said("head.low", [-2.0])),
    ("low = []", said("head.low", [])),
    ("high.0 = 1e+300", said("head.high", [1e300, 1.0])),
    ("high.0 = '2'", said("head.high", ["2", 1.0])),
    ("unknown key 'num_actions'", said("head.num_actions", 2)),
]
TRAINED = [
    ("scales_S", held("scales_S", lambda t: None)),
    ("scales_S has the shape", held("scales_S", lambda t: t[1:])),
    ("scales_S holds a number that is not finite", held("scales_S", with_number(np.nan))),
    ("the scale of input is 0", held("scales_S", with_number(0.0))),
    ("the scale of input is -1", held("scales_S", with_number(-1.0))),
    ("scales_S holds 3e+300", held("scales_S", lambda t: t * 1e300)),
    ("scales_S holds float32", held("scales_S", np.float32)),
    ("tensor 'scales_S' does not belong there", said("quantize", None)),
    ("quantize: input_bits = 9", said("quantize.input_bits", 9)),
    ("quantize: narrow = 1", said("quantize.narrow", 1)),
    ("quantize: per = 'row'", said("quantize.per", "row")),
    ("quantize lacks the key 'per'", said("quantize.per", None)),
    ("core_bits", said("quantize.core_bits", [2, 3, 4])),
    ("quantize = 4", said("quantize", 4)),
]
CASES = [("categorical-False", *case) for case in DISCRETE]
CASES += [("gaussian-False", *case) for case in BOUNDED] + [("categorical-True", *case) for case in TRAINED]


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Description and tensors of every policy."""
    out = {}
    for name, policy in policies().items():
        path = tmp_path_factory.mktemp("valid") / name
        policy.save(path)
        out[name] = tensorfile.read(path, policy_file.FORMAT, "")
    return out


def refused(path):
    with pytest.raises(UserError) as error:
        policy_file.load(path)
    line = str(error.value)
    assert line.startswith((f"{path} ", f"cannot read {path}", f"cannot read the description in {path}"))
    assert line.endswith(f": {policy_file.REMEDY}")
    assert "\n" not in line
    assert len(line) < 1000
    return line


@pytest.mark.parametrize(
    ("kind", "reason", "change"), CASES, ids=[f"{i}-{r[:30]}" for i, (_, r, _) in enumerate(CASES)]
)
def test_a_well_hashed_file_that_holds_no_policy(valid, tmp_path, kind, reason, change):
    about, tensors = json.loads(json.dumps(valid[kind][0])), dict(valid[kind][1])
    change(about, tensors)
    put(tmp_path / "policy", json.dumps(about), tensors)
    assert reason in refused(tmp_path / "policy")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "nested more than 50 deep"),
        ('{"format": "distqtrl policy 1", "environment": ' + DEEP + "}", "nested more than 50 deep"),
        ('{"format": "distqtrl policy 1", "format": "distqtrl policy 1"}', "duplicate key 'format'"),
        ('{"format": "distqtrl policy 1", "count": ' + "9" * 10_000 + "}", "is too large a number"),
        ('{"format": "distqtrl policy 1", "count": 1e999}', "'1e999' is too large a number"),
        ('{"format": "distqtrl policy 1", "agents": ["\\ud800"]}', "not valid Unicode"),
        ("[]", "is a 'None' file"),
        ("null", "is a 'None' file"),
        ('{"format": ["distqtrl policy 1"]}', "is a '['distqtrl policy 1']' file"),
        ("{", "it is not JSON"),
    ],
)
def test_a_well_hashed_description_that_is_none(tmp_path, text, reason):
    put(tmp_path / "policy", text, {"w_M": np.zeros(1, np.float32)})
    assert reason in refused(tmp_path / "policy")


def test_what_is_written_loads_as_it_was(valid, tmp_path):
    """Whatever the head; and without a key that is not there yet."""
    for name, (about, tensors) in valid.items():
        put(tmp_path / name, json.dumps(about, sort_keys=True), tensors)
        policy_file.load(tmp_path / name).save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / name).read_bytes()


def test_a_great_policy_loads_in_milliseconds(valid, tmp_path):
    about, tensors = json.loads(json.dumps(valid["categorical-False"][0])), dict(valid["categorical-False"][1])
    about["architecture"]["hidden"] = [1000, 1000]
    tensors["w_M"] = torch.randn(3 * 1000 + 1000 + 1000 * 1000 + 1000 + 1000 * 2 + 2).numpy()
    put(tmp_path / "policy", json.dumps(about), tensors)
    assert policy_file.load(tmp_path / "policy").w_M.numpy().tobytes() == tensors["w_M"].tobytes()


@pytest.mark.parametrize("command", ["evaluate", "export"])
@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("categorical-False", {}, "CartPole-v1 has 4 observations, the policy reads 3"),
        (
            "categorical-False",
            {"id": "Pendulum-v1"},
            "Pendulum-v1 has 3 observations, Box(-2.0,) to (2.0,), the policy",
        ),
        ("gaussian-False", {"id": "Pendulum-v1"}, "do not play each agent once"),
        ("squashedgaussian-True", {"id": "Pendulum-v1"}, "the policy acts from (-1.0,) to (1.0,)"),
        ("categorical-False", {"id": "Nowhere-v0"}, "unknown environment 'Nowhere-v0'"),
    ],
)
def test_a_policy_of_another_environment_is_refused(valid, tmp_path, capfd, command, kind, values, reason):
    about, tensors = json.loads(json.dumps(valid[kind][0])), valid[kind][1]
    about["environment"] |= values
    put(tmp_path / "policy", json.dumps(about), tensors)
    words = ["-o", str(tmp_path / "out")] if command == "export" else []
    assert cli.main([command, str(tmp_path / "policy"), *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert reason in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_commands_refuse_it_in_one_line(valid, tmp_path, capfd, command):
    about, tensors = valid["categorical-False"]
    put(tmp_path / "policy", json.dumps(about), tensors | {"w_M": np.full(26, np.nan, np.float32)})
    words = ["-o", str(tmp_path / "out")] if command == "export" else []
    assert cli.main([command, str(tmp_path / "policy"), *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert re.match(r"distqtrl: .*/policy holds no policy \(w_M holds a number that is not finite\)", line)
    assert not (tmp_path / "out").exists()
