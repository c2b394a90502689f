"""What an exported folder says of itself: read as it was written, or refused in one line."""

import json

import numpy as np
import pytest
from fuzzing import MANIFEST
from quantize.programs import program

from distqtrl.cli import main as cli
from distqtrl.errors import UserError
from distqtrl.export import manifest
from distqtrl.quantize import program as programs


def changed(key, value):
    *above, last = key.split(".")
    values = json.loads(json.dumps(MANIFEST))
    inner = values
    for name in above:
        inner = inner[name]
    inner[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (changed("files", {}), "files = {}"),
        (changed("files", {"../../etc/passwd": "0" * 64}), "this is not the name of a file in the folder"),
        (changed("files", {"policy.c": "0" * 63}), "files.policy.c"),
        (changed("targets", []), "targets = []"),
        (changed("targets", ["fortran"]), "targets.0 = 'fortran'"),
        (changed("targets", ["c"]), "verilog does not describe the cores of the targets"),
        (changed("program", None), "program = None"),
        (changed("agents", ["a", "a"]), "'a' occurs twice"),
        (changed("environment", {}), "environment lacks the key"),
        (changed("environment.frames", "1"), "frames = '1'"),
        (changed("verilog.folded.observations_per_beat", 0), "observations_per_beat = 0"),
        (changed("verilog.folded.observations_per_beat", True), "observations_per_beat = True"),
        (changed("format", "distqtrl export 2"), "format = 'distqtrl export 2'"),
        ("[]", "Input should be an object"),
        ("[" * 200_000, "nested more than 50 deep"),
        ('{"format": 1, "format": 1}', "duplicate key 'format'"),
        ("", "it is not JSON"),
    ],
)
def test_a_manifest_that_is_none(tmp_path, capfd, text, reason):
    (tmp_path / "manifest.json").write_text(text)
    assert cli.main(["verify", str(tmp_path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{tmp_path}/manifest.json" in line
    assert reason in line


def test_a_newer_manifest_may_say_more(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({**MANIFEST, "proven": ["c"]}))
    assert manifest.manifest(tmp_path / "manifest.json")["proven"] == ["c"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("1,2,3\n", "has 3 columns, not the program's"),
        ("0,99999,0,0\n", "do not fit 16 bits"),
        ("0,x,0,0\n", "cannot read"),
        ("0,nan,0,0\n", "cannot read"),
        ("0,1e400,0,0\n", "cannot read"),
        ("0," + "9" * 5000 + ",0,0\n", "cannot read"),
    ],
)
def test_vectors_that_are_none(tmp_path, text, reason):
    scale = programs.Scale(np.ones(2, np.int64), np.zeros(2, np.int64), 0, -5, 5)
    made = programs.Program((0, 0), 16, (scale,))
    (tmp_path / "program.json").write_text(programs.dumps(made))
    (tmp_path / "vectors.csv").write_text(text)
    with pytest.raises(UserError, match=reason) as error:
        manifest.read(tmp_path)
    assert "vectors.csv" in str(error.value)
    assert len(str(error.value)) < 300
    (tmp_path / "vectors.csv").write_text("1,2,3,4\n")
    assert [x.tolist() for x in manifest.read(tmp_path)[1:]] == [[[1, 2]], [[3, 4]]]


def op(name, number=0, **values):
    """A change of an operation: its place among those of that name."""

    def change(told):
        [op for op in told["ops"] if op["op"] == name][number].update(values)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda told: told.update(input_bits=32), "input_bits = 32"),
        (lambda told: told.update(input_bits=True), "input_bits = True"),
        (lambda told: told.update(input_fraction_O=[]), "input_fraction_O = []"),
        (lambda told: told.update(input_fraction_O=[1000] * 3), "input_fraction_O.0 = 1000"),
        (lambda told: told.update(input_fraction_O=[0] * 3), "entries for 3 numbers"),
        (lambda told: told.update(output_fraction=10**18), "output_fraction = 1000000000000000000"),
        (lambda told: told.update(ops=[]), "ops = []"),
        (lambda told: told.update(licence="mine"), "unknown key 'licence'"),
        (lambda told: told["ops"].append({"op": "argmax", "start": 0, "stop": 3}), "unknown key"),
        (lambda told: told["ops"].append({"op": "sigmoid"}), "'sigmoid'"),
        (lambda told: told["ops"].insert(0, {"op": "argmax", "start": 0}), "an argmax is the last operation"),
        (op("scale", shift=-1), "shift = -1"),
        (op("scale", shift=64), "shift = 64"),
        (op("scale", low=9, high=-9), "low = 9 is above high = -9"),
        (op("scale", multiplier_N=[1]), "multiplier_N has 1 entries"),
        (op("scale", multiplier_N=[2**40]), "multiplier_N.0 = 1099511627776"),
        (op("scale", offset_N=[2**63]), "offset_N.0 = 9223372036854775808"),
        (op("scale", offset_N=[0.5]), "offset_N.0 = 0.5"),
        (op("matmul", weights_NK=[[1, 2], [3]]), "weights_NK has"),
        (op("matmul", weights_NK=[[]]), "weights_NK.0 = []"),
        (op("matmul", weights_NK=[[300]]), "weights_NK.0.0 = 300"),
        (op("matmul", weights_NK=[[False]]), "weights_NK.0.0 = False"),
    ],
)
def test_a_program_that_is_none(change, reason):
    whole = program(seed=1)
    told = json.loads(programs.dumps(whole))
    change(told)
    with pytest.raises(UserError) as error:
        programs.loads(json.dumps(told))
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert programs.dumps(programs.loads(programs.dumps(whole))) == programs.dumps(whole)
