"""Equal, different, not checked: broken tools and unprepared machines are never a difference, and a proof says no more
than was done."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest
from needs import soon

from distqtrl.cli import main as cli
from distqtrl.export import loader, manifest, readme, tools, verify
from distqtrl.export.check import BUILT, DIFFERENT, EQUAL, NOT_CHECKED, Check
from distqtrl.export.verilog import synthesis

QUICK = ["--vectors", "300", "--episodes", "1"]
REAL = os.environ["PATH"]


def script(folder, name, text):
    """A program of this name, first on PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def links(folder, **names):
    """A PATH of these programs only: name = what it is."""
    folder.mkdir()
    for name, real in names.items():
        (folder / name).symlink_to(shutil.which(real, path=REAL))
    return str(folder)


def run(capfd, *words):
    code = cli.main([str(word) for word in words])
    out, err = capfd.readouterr()
    return code, out, err


def verdict(out, target):
    """What a check's line says behind its target."""
    return next(line[18:] for line in out.splitlines() if line.startswith(f"{target} "))


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of a folder with C and ONNX."""
    return shutil.copytree(exported["gaussian"], tmp_path / "copy")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("echo 'out of licences' >&2; exit 3", "not checked: cc failed with exit code 3: out of licences: mend it"),
        ("kill -SEGV $$", "not checked: cc failed with signal SIGSEGV: it said nothing: mend it"),
        ("exit 0", "not checked: cc said that all was well and wrote no policy.so: mend it"),
        ('for o; do echo no >policy.so; done', "not checked: cc wrote a library that does not load"),
    ],
)  # fmt: skip
def test_a_broken_compiler_is_no_difference(folder, tmp_path, monkeypatch, text, says, capfd):
    script(tmp_path / "bin", "cc", text)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{REAL}")
    monkeypatch.delenv("CC", raising=False)
    code, out, _ = run(capfd, "verify", folder, "--target", "c", *QUICK)
    assert code == 3
    assert verdict(out, "c").startswith(says)
    assert verdict(out, "closed loop").startswith("not checked: cc ")
    assert run(capfd, "verify", folder, *QUICK)[0] == 0  # ONNX is equal, and C was not asked for by name


def test_the_variable_names_a_compiler_as_for_make(folder, tmp_path, monkeypatch, capfd):
    other = links(tmp_path / "bin", clang="gcc", **{name: name for name in ("as", "ld")})
    cases = [("gcc -m64", REAL, "equal"), ("", REAL, "equal"), ("clang", other, "equal"), ("  ", other, "equal")]
    cases += [("icc -O1", REAL, "not checked: no icc: unset CC"), ("gcc 'x", REAL, "not checked: CC=gcc 'x: ")]
    for value, path, says in cases:
        monkeypatch.setenv("CC", value)
        monkeypatch.setenv("PATH", path)
        code, out, _ = run(capfd, "verify", folder, "--target", "c", *QUICK)
        assert verdict(out, "c").startswith(says), value
        assert code == (0 if says == "equal" else 3)


HANGS = "echo $$ > '{0}.new'; mv '{0}.new' '{0}'; sleep 100 & sleep 100"


def left(file):
    """Whether a process of the script's group is there; killed processes may need a moment."""
    group = int(file.read_text())

    def gone():
        return not [p for p in psutil.pids() if _group(p) == group]

    return not soon(gone, 5)


def _group(pid):
    try:
        return os.getpgid(pid) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else 0
    except (ProcessLookupError, psutil.NoSuchProcess):
        return 0


def test_a_tool_that_hangs_is_ended_with_its_children(folder, tmp_path, monkeypatch, capfd):
    script(tmp_path / "bin", "cc", HANGS.format(tmp_path / "pid"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{REAL}")
    code, out, _ = run(capfd, "verify", folder, "--target", "c", *QUICK, "--tool-limit", 1)
    assert code == 3
    assert verdict(out, "c") == "not checked: cc did not end within 1 s: give it more with --tool-limit"
    assert not left(tmp_path / "pid")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_tools_and_leaves_nothing(policies, tmp_path, sent):
    script(tmp_path / "bin", "cc", HANGS.format(tmp_path / "pid"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "made").mkdir()
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{REAL}", "TMPDIR": str(tmp_path / "tmp")}
    words = ["export", policies["small"], "-o", tmp_path / "made" / "out", "--target", "c", *QUICK]
    command = [sys.executable, "-m", "distqtrl", *map(str, words)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as process:
        try:
            assert soon((tmp_path / "pid").exists, 120)
            process.send_signal(sent)
            error = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 128 + sent
    assert error == f"distqtrl: interrupted by {sent.name}; files that were written stay whole\n"
    assert not left(tmp_path / "pid")
    assert [*(tmp_path / "made").iterdir(), *(tmp_path / "tmp").iterdir()] == []


def test_onnxruntime_that_raises(folder, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise RuntimeError("illegal instruction set\nsecond line")

    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=refuse))
    code, out, _ = run(capfd, "verify", folder, "--target", "onnx", *QUICK)
    assert code == 3
    assert verdict(out, "onnx").startswith("not checked: onnxruntime failed: illegal instruction set: install")


# ---- Verilog


@pytest.fixture(scope="module")
def unproven(policies, tmp_path_factory):
    """A folder with C and Verilog, exported where perl and Yosys fail and there is no Icarus."""
    place = tmp_path_factory.mktemp("unproven")
    script(place / "bin", "perl", "echo 'perl: warning: locale' >&2; echo 'broken pipe dream' >&2; exit 9")
    for name in ("iverilog", "vvp"):
        script(place / "bin", name, "exit 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{place / 'bin'}:{REAL}")
        full = (sys.executable, "-c", "import sys; sys.exit('ERROR: No space left on device')")
        patch.setattr(tools, "yosys", lambda: tools.Tool("Yosys", full, "give it more room"))
        words = ["-o", place / "out", "--target", "c,verilog", "--bits", "core=3,input=4,output=4", *QUICK]
        assert cli.main(["export", str(policies["small"]), *map(str, words)]) == 0
    assert [path.name for path in place.iterdir() if path.name != "bin"] == ["out"]
    return place / "out"


def test_an_export_says_what_was_proven(unproven):
    about, page = json.loads((unproven / "manifest.json").read_text()), (unproven / "README.md").read_text()
    checks = {check["target"]: check for check in about["checks"]}
    assert checks["c"]["status"] == "equal"
    for core in ("folded", "unrolled"):
        said = checks[f"verilog {core}"]
        assert said["status"] == "not checked"
        assert said["detail"].startswith(
            "Verilator (by perl) failed with exit code 9: broken pipe dream: see that perl"
        )
        assert f"`policy_{core}.v`: **not checked** (verilog {core}: Verilator (by perl) failed" in page
        assert about["verilog"][core]["missing"].startswith("Yosys failed with exit code 1: ERROR: No space left")
    assert "`policy.c`: equal on 300 vectors (c)" in page
    assert "Every file" not in page
    assert readme.unproven(about) == ["policy_folded.v", "policy_unrolled.v"]


@pytest.mark.parametrize(
    ("name", "text", "target", "says"),
    [
        ("make", "echo 'make: jobserver lost' >&2; exit 2", "verilog folded", "make failed with exit code 2: make:"),
        ("g++", "echo 'g++: fatal error: Killed' >&2; exit 1", "verilog folded", "make failed with exit code 2: g++:"),
        ("perl", "exit 0", "verilog folded", "Verilator (by perl) said that all was well and wrote no Vtop.mk"),
        ("iverilog", "echo 'bench: error' >&2; exit 1", "icarus folded", "iverilog failed with exit code 1: bench"),
        ("iverilog", "exit 0", "icarus folded", "iverilog said that all was well and wrote no bench"),
        ("vvp", "exit 0", "icarus folded", "vvp printed 0 of 300 actions"),
        ("vvp", "kill -KILL $$", "icarus folded", "vvp failed with signal SIGKILL"),
    ],
)  # fmt: skip
def test_broken_simulators_are_no_difference(unproven, tmp_path, monkeypatch, name, text, target, says, capfd):
    for other in ("perl", "make", "g++", "iverilog", "vvp"):
        if other not in (name, *(("perl",) if name in ("make", "g++") else ()), *(("make",) if name == "g++" else ())):
            script(tmp_path, other, "echo x > bench; exit 0" if other == "iverilog" else "exit 1")
    script(tmp_path, name, text)
    monkeypatch.setenv("PATH", f"{tmp_path}:{REAL}")
    code, out, _ = run(capfd, "verify", unproven, "--target", "verilog", *QUICK)
    assert code == 3
    assert verdict(out, target).startswith(f"not checked: {says}")
    assert "DIFFERENT" not in out


def test_missing_tools_name_what_brings_them(unproven, tmp_path, monkeypatch, capfd):
    bare = links(tmp_path / "bin", perl="perl")
    for path, says in (
        (bare, "no make: install the Debian package make"),
        ("/nowhere", "no perl, which Verilator needs"),
    ):
        monkeypatch.setenv("PATH", path)
        code, out, _ = run(capfd, "verify", unproven, *QUICK)
        assert code == 3  # nothing was checked
        assert verdict(out, "verilog folded").startswith(f"not checked: {says}")
        assert verdict(out, "c").startswith("not checked: no cc: install")


NEEDED = ("perl", "make", "g++", "as", "ld", "ar", "sh", "rm", "cat", "xargs", "echo", "python3", "uname")


def test_verilator_needs_no_python_on_path(unproven, tmp_path):
    """PATH is a folder of links to what README names; TMPDIR has a space, which make could not name."""
    temporary = tmp_path / "tmp dir"
    temporary.mkdir()
    path = links(tmp_path / "bin", **{name: name for name in NEEDED})
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "NUMBA_CACHE_DIR") if name in os.environ}
    env = {"PATH": path, "HOME": str(tmp_path), "TMPDIR": str(temporary), **kept}
    words = ["verify", str(unproven), "--target", "verilog", *QUICK]
    done = subprocess.run([sys.executable, "-m", "distqtrl", *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdict(done.stdout, "verilog folded").startswith("equal 300 vectors")
    assert verdict(done.stdout, "verilog unrolled").startswith("equal 300 vectors")


def test_a_core_that_says_nothing_differs(unproven, tmp_path):
    if not shutil.which("iverilog"):
        pytest.skip("no iverilog: install the Debian package iverilog")
    program, x_BO, _ = manifest.read(unproven)
    text = (unproven / "policy_unrolled.v").read_text()
    silent = re.sub(r"assign out_valid = [^;]+;", "assign out_valid = 0;", text)
    from distqtrl.export.verilog import simulate

    with pytest.raises(simulate.Stuck, match="no action"):
        simulate.icarus(silent, "policy_unrolled", tmp_path, program, x_BO[:5], len(program.input_fraction_O))


# ---- where tools work


def test_a_place_that_works_is_chosen(tmp_path, monkeypatch):
    spaced, absent, good = tmp_path / "with space", tmp_path / "absent", tmp_path / "good"
    spaced.mkdir()
    good.mkdir()
    for given, parent in ((spaced, None), (absent, None), (good, good)):
        monkeypatch.setenv("TMPDIR", str(given))
        with tools.workplace() as place:
            assert place.parent != spaced
            assert parent is None or place.parent == parent
            assert " " not in str(place)
        assert not place.exists()
    room = tools._room
    monkeypatch.setattr(tools, "_room", lambda path: 4096 if path == good else room(path))  # a full one
    with tools.workplace() as place:
        assert place.parent != good
    monkeypatch.setattr(tools, "_usable", lambda path: False)
    with pytest.raises(tools.Unchecked, match="set TMPDIR to one that can be written"), tools.workplace():
        pass


# ---- the manifest


def changed(folder, **values):
    about = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(about | values))
    return about


def without(values, *names):
    return {name: value for name, value in values.items() if name not in names}


def test_a_shortened_manifest_is_seen(folder, capfd):
    about = changed(folder)
    cases = [
        ({"files": {}}, "program.json is not in manifest.json"),
        ({"files": without(about["files"], "policy.onnx")}, "policy.onnx is not in manifest.json"),
        ({"files": without(about["files"], "vectors.csv")}, "vectors.csv is not in manifest.json"),
        ({"files": without(about["files"], "README.md")}, "README.md is not in manifest.json"),
        ({"targets": []}, "policy.onnx belongs to no target"),
        ({"targets": ["c"]}, "policy.onnx belongs to no target"),
        ({"targets": ["c", "onnx", "verilog"]}, "policy_folded.v is not in manifest.json"),
        ({"program": "0" * 64}, "program.json is not the program that was exported"),
    ]
    for values, says in cases:
        changed(folder, **{**about, **values})
        code, out, _ = run(capfd, "verify", folder, *QUICK)
        assert code == 1, values
        assert verdict(out, "files").startswith("DIFFERENT")
        assert says in verdict(out, "files")


@pytest.mark.parametrize(
    "values", [{"files": []}, {"targets": "c"}, {"targets": ["vhdl"]}, {"program": 1}, {"files": {"../x": "0"}}]
)
def test_an_ill_formed_manifest_is_refused(folder, values, capfd):
    changed(folder, **values)
    code, _, err = run(capfd, "verify", folder, *QUICK)
    assert code == 2
    assert "is no exported policy" in err
    assert len(err.splitlines()) == 1


def test_nothing_runs_that_is_not_as_exported(folder, tmp_path, capfd):
    marker = tmp_path / "ran"
    code = f'#include <stdio.h>\n__attribute__((constructor)) void ran(void) {{ fclose(fopen("{marker}", "w")); }}\n'
    with (folder / "policy.c").open("a") as file:
        file.write(code)
    with (folder / "policy.py").open("a") as file:
        file.write(f"\nopen({str(marker)!r}, 'w')\n")
    with (folder / "policy.onnx").open("ab") as file:
        file.write(b"x")
    code, out, _ = run(capfd, "verify", folder, *QUICK)
    assert code == 1
    assert (
        verdict(out, "files")
        == "DIFFERENT: policy.c not as exported, policy.onnx not as exported, policy.py not as exported"
    )
    for target, file in (("c", "policy.c"), ("onnx", "policy.onnx"), ("closed loop", "policy.c")):
        assert verdict(out, target) == f"not checked: {file} is not as exported, so it was not run"
    assert not marker.exists()


def test_a_program_that_is_not_the_recorded_one_says_nothing(folder, capfd):
    text = (folder / "program.json").read_text()
    (folder / "program.json").write_text(text + "\n")
    code, out, _ = run(capfd, "verify", folder, *QUICK)
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == ["files", "interpreter"]


def test_a_target_that_is_not_there_is_refused(folder, capfd):
    code, _, err = run(capfd, "verify", folder, "--target", "c,verilog", *QUICK)
    assert code == 2
    assert err == f"distqtrl: --target verilog: {folder} was exported without it, its targets are: c, onnx\n"


def test_exit_codes():
    def found(**statuses):
        return [Check(name.replace("_", " "), status) for name, status in statuses.items()]

    nothing = found(files=EQUAL, interpreter=EQUAL, c=NOT_CHECKED, closed_loop=NOT_CHECKED)
    verilog = found(verilog_folded=EQUAL, verilog_unrolled=NOT_CHECKED, icarus_unrolled=EQUAL)
    assert verify.exit_code(nothing) == 3
    assert verify.exit_code([*nothing, *found(onnx=EQUAL)]) == 0
    assert verify.exit_code([*nothing, *found(onnx=EQUAL)], ["c"]) == 3
    assert verify.exit_code([*nothing, *found(onnx=DIFFERENT)], ["c"]) == 1
    assert verify.exit_code(found(c=EQUAL, c_cortex_m=NOT_CHECKED), ["c"]) == 0
    assert verify.exit_code(found(cuda=BUILT, torch=EQUAL)) == 0
    assert verify.exit_code(found(cuda=BUILT, torch=EQUAL), ["cuda"]) == 3
    assert verify.exit_code(verilog, ["verilog"]) == 0
    assert verify.exit_code(verilog[:2], ["verilog"]) == 3


def test_help_says_the_exit_codes(capfd):
    assert "3: a target named with --target could not be checked" in " ".join(run(capfd, "verify", "--help")[1].split())
    assert "Exit code 0: the folder was written" in " ".join(run(capfd, "export", "--help")[1].split())


# ---- policy.py by itself


def compiled(folder, cache, path=REAL, more=""):
    """What policy.py of a folder prints in a process of its own: the library, and one action."""
    code = "import policy; print(policy._built(policy.FLAGS)); print(policy.Policy().act([0.1, 0.2, 0.3]).tolist())"
    env = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(cache), "PATH": path}
    done = subprocess.run([sys.executable, "-c", more + code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_cache_knows_compiler_and_cpu(folder, tmp_path):
    """The stand-in for another node's compiler says what -march=native means there."""
    old = 'for w; do case $w in -march=native) w=-march=x86-64 ;; esac; set -- "$@" "$w"; shift; done; exec gcc "$@"'
    script(tmp_path / "bin", "cc", old)
    cache = tmp_path / "cache"
    library, action = compiled(folder, cache)
    other, same = compiled(folder, cache, f"{tmp_path / 'bin'}:{REAL}")
    assert library != other
    assert action == same
    assert {str(path) for path in (cache / "distqtrl").iterdir()} == {library, other}
    elsewhere = "import policy; policy._machine = lambda *x: b'another CPU'; "
    assert compiled(folder, cache, more=elsewhere)[0] not in (library, other)


def test_a_cache_that_is_damaged_or_cannot_be_written(folder, tmp_path):
    library, action = compiled(folder, tmp_path / "cache")
    Path(library).write_bytes(Path(library).read_bytes()[:100])
    assert compiled(folder, tmp_path / "cache") == [library, action]
    (tmp_path / "file").touch()
    temporary, same = compiled(folder, tmp_path / "file")
    assert same == action
    assert not Path(temporary).parent.exists()


def test_a_broken_compiler_is_one_line(monkeypatch, tmp_path):
    script(tmp_path, "cc", "echo 'no licence' >&2; exit 4")
    monkeypatch.setenv("PATH", f"{tmp_path}:{REAL}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loader, "HERE", tmp_path)
    for name in ("policy.h", "policy.c"):
        (tmp_path / name).touch()
    with pytest.raises(RuntimeError, match=r"^cc failed with exit code 4: no licence$"):
        loader.Policy()
    assert not (tmp_path / "cache").exists()


def test_inverters_are_tables(monkeypatch):
    cells = {"LUT3": 2, "INV": 5, "FDRE": 7, "BUFG": 1}
    text = json.dumps({"design": {"num_cells_by_type": cells}})
    monkeypatch.setattr(synthesis, "synthesized", lambda *args: text)
    assert synthesis.resources("", "top") == synthesis.Resources(lut=7, ff=7, bram=0.0, dsp=0)
