"""The Verilog cores in an exported folder: proven, mutated, and with tools that are broken or missing."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from broken import QUICK, REAL, links, run, script, verdict

from distqtrl.cli import main as cli
from distqtrl.export import check, manifest, readme, targets, tools, verify
from distqtrl.export.verilog import simulate, unrolled


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
            "Verilator (by perl) failed with exit code 9: broken pipe dream: check that perl"
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
    with pytest.raises(simulate.Stuck, match="no action"):
        simulate.icarus(silent, "policy_unrolled", tmp_path, program, x_BO[:5], len(program.input_fraction_O))


@pytest.mark.xdist_group("cores")
@pytest.mark.parametrize(
    ("core", "pattern", "change"),
    [
        ("unrolled", r" = (?:\{1'b0, )?\S+ (\+) ", lambda text: "-"),
        ("unrolled", r"<= (n\d+);", lambda text: f"~{text}"),
        ("folded", r"weights\[1\] = \d+'h([0-9a-f]+)", lambda text: f"{int(text, 16) ^ 1:x}"),
        ("folded", r"w = v >>> (\d+);", lambda text: str(int(text) - 1)),
        ("folded", r"offsets\[0\] = \d+'h([0-9a-f])", lambda text: f"{int(text, 16) ^ 1:x}"),
    ],
)
def test_a_mutation_of_a_core_is_seen(cores, tmp_path, core, pattern, change):
    """By Icarus, which takes a second where Verilator takes ten."""
    mutate(cores, tmp_path / "mutated", core, pattern, change)
    assert checked(tmp_path / "mutated", targets.TARGETS["verilog"].checks[f"icarus {core}"]).status == "DIFFERENT"


@pytest.mark.xdist_group("cores")
def test_a_mutation_of_a_core_is_seen_by_verilator(cores, tmp_path):
    folder = mutate(cores, tmp_path / "mutated", "unrolled", r"assign out_data = ()", lambda text: "~")
    found = checked(folder, targets.TARGETS["verilog"].checks["verilog unrolled"])
    assert found.status == "DIFFERENT"
    assert found.detail.startswith("1,000 of 1,000 vectors")


def mutate(source, folder, core, pattern, change):
    """The folder as a copy whose core has the first match's group changed."""
    shutil.copytree(source, folder)
    file = folder / f"policy_{core}.v"
    text = file.read_text()
    found = re.search(pattern, text)
    file.write_text(text[: found.start(1)] + change(found[1]) + text[found.end(1) :])
    return folder


def checked(folder, comparison):
    program, seen_BO, _ = manifest.read(folder)
    x_BO = verify.vectors(program, seen_BO, 1000, seed=0)
    facts = manifest.manifest(folder / "manifest.json")["verilog"]
    question = check.Question(folder, program, x_BO, program.run(x_BO), seen_BO, facts)
    return check.checked("core", comparison, question)


def test_a_policy_that_is_too_large_to_be_wired_has_the_folded_core(policies, tmp_path, monkeypatch, capfd):
    """To find what the adders of its layers share would take hours, and so would the tools that read them."""
    monkeypatch.setattr(unrolled, "MOST_DIGITS", 1)
    out = tmp_path / "out"
    words = ["--target", "verilog", "--bits", "core=3,input=4,output=4", *map(str, QUICK)]
    assert cli.main(["export", str(policies["small"]), "-o", str(out), *words]) == 0
    why = "signed digits, and 1 are the most that are wired"
    said = capfd.readouterr().out
    assert said.count(why) == 3  # simulated by Verilator and by Icarus, and counted by Yosys
    checks = {check["target"]: check["status"] for check in json.loads((out / "manifest.json").read_text())["checks"]}
    assert (checks["verilog unrolled"], checks["icarus unrolled"]) == ("not checked", "not checked")
    assert checks["verilog folded"] == "equal"
    assert why in (out / "policy_unrolled.v").read_text()
    assert (
        "`policy_unrolled.v`: **not checked** (verilog unrolled: a layer's weights" in (out / "README.md").read_text()
    )
    code, out_, _ = run(capfd, "verify", out, *QUICK)
    assert (code, verdict(out_, "verilog folded")[:5]) == (0, "equal")
