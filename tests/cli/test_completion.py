"""distqtrl completion: the scripts of shells, of which bash itself completes words."""

import shutil
import subprocess
import sys

import pytest
from needs import need


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(command, shell):
    code, out, _ = command("completion", shell)
    assert code == 0
    assert all(word in out for word in ("site-check", "train", "circuit.layers"))


def test_bash_completes(command):
    if shutil.which("bash") is None:
        need("there is no bash")
    script = command("completion", "bash")[1]
    asked = 'COMP_WORDS=({words}); COMP_CWORD={last}; _shtab_distqtrl; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
    words = (["distqtrl", "site"], ["distqtrl", "train", "--circuit.la"], ["distqtrl", "completion", "z"])
    for given, found in zip(words, ("site-check", "--circuit.layers", "zsh"), strict=True):
        text = script + asked.format(words=" ".join(given), last=len(given) - 1)
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False)
        assert found in done.stdout.split(), (done.stdout, done.stderr)


def test_without_shtab(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, err = command("completion", "bash")
    assert (code, err) == (2, "distqtrl: completion needs shtab: pip install 'distqtrl[completion]'\n")
