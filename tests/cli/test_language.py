"""What a language model cannot be trained with is one line of the command, before anything is written."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
from decoders import write
from needs import need

from distqtrl.allreduce import threads
from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Serial
from distqtrl.allreduce.rendezvous import Rendezvous
from distqtrl.language import checkpoint, tasks
from distqtrl.language.model import Model
from distqtrl.language.own import Own
from distqtrl.training.build import compare
from distqtrl.training.grpo.prompts import Prompts
from distqtrl.training.grpo.spec import Decoder

SMALL = ["--train.updates", "2", "--language.prompts", "2", "--language.group", "2", "--language.max_tokens", "3"]
TASK = "def question(split, number): return '1+2=', '3'\ndef reward(completion, answer):\n    "
UNTESTED = "def questions(split): return [('1', '1')] * (split == 'train')\ndef reward(completion, answer): return 1"
QUANTIZED = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """The directory of a decoder."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        need("there is no transformers: pip install 'distqtrl[llm]'")
    return write(tmp_path_factory.mktemp("language") / "base")


@pytest.fixture
def base(decoder, tmp_path, monkeypatch):
    """A copy of it as ./base, in a folder that has nothing else."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(decoder, tmp_path / "base")


def changed(directory, file, **keys):
    """Replace keys of a JSON file; None takes one away."""
    about = json.loads((directory / file).read_text()) | keys
    (directory / file).write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


def without_end(directory):
    changed(directory, "config.json", eos_token_id=None)
    changed(directory, "tokenizer_config.json", eos_token=None)
    for name in ("generation_config.json", "special_tokens_map.json"):
        (directory / name).unlink(missing_ok=True)


def narrow(directory):
    shutil.rmtree(directory)
    write(directory, width=24)


def untouched(directory):
    """What is wrong is elsewhere."""


@pytest.mark.parametrize(
    ("spoil", "flags", "said"),
    [
        (shutil.rmtree, {}, "language.base = base is not a directory here: give a directory that holds config.json"),
        (
            untouched,
            {"language.base": "org/model"},
            "nothing is fetched at run time; if that is a name on a hub, bring it first: hf download org/model",
        ),
        (untouched, {"language.base": "none"}, "language.base is not set: give the directory of a language model"),
        (lambda d: (d / "config.json").unlink(), {}, "base: config.json: No such file"),
        (lambda d: (d / "tokenizer.json").unlink(), {}, "base: it has no tokenizer (tokenizer.json)"),
        (
            lambda d: changed(d, "config.json", quantization_config=QUANTIZED),
            {},
            "quantized as compressed-tensors mxfp4-pack-quantized; nvfp4-pack-quantized alone is read",
        ),
        (narrow, {}, "q_proj has 24 inputs, no multiple of the block's 16: choose a format without blocks"),
        (untouched, {"language.targets": "c_attn"}, "base ends in 'c_attn': there are down_proj"),
        (without_end, {}, "base: it has no end token (eos_token_id), so that no completion would end"),
        (
            untouched,
            {"language.max_tokens": 59},
            "base, 64 tokens: lower language.max_tokens to 58",
        ),
        (untouched, {"language.group": 1}, "language.group = '1': Input should be greater than or equal to 2"),
        (
            untouched,
            {"rollout.noise_end": 1e-12},
            "rollout.noise (deviation 1e-12) reached 0 of 5 RMSNorms: noise without RMSNorm, or below",
        ),
        (untouched, {"language.task": "long.jsonl"}, "has 100 tokens, and the context of "),
        (untouched, {"language.task": "untested.py"}, "untested.py: questions('test') is []: return a list of"),
        (untouched, {"language.task": "arithmetics"}, "unknown language.task 'arithmetics': did you mean 'arithmetic'"),
    ],
)
def test_it_is_refused_before_anything_is_written(spoil, flags, said, base, command):
    spoil(base)
    prompts = [*map(str, range(40)), "1" * 100]
    (base.parent / "long.jsonl").write_text("\n".join(f'{{"question": "{p}", "answer": "1"}}' for p in prompts))
    (base.parent / "untested.py").write_text(UNTESTED)
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    code, out, err = command("train", "qerl-arithmetic", *SMALL, "--language.base", "base", "--run", "run", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("distqtrl: ")
    assert said in err
    assert {path.name for path in base.parent.iterdir()} <= {"base", "long.jsonl", "untested.py"}


def test_noise_needs_a_norm(base, command, monkeypatch):
    """No family of decoders lacks them, so this one's are hidden."""
    plain = Model.__init__

    def bare(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.norms = []

    monkeypatch.setattr(Model, "__init__", bare)
    code, out, err = command("train", "qerl-arithmetic", *SMALL, "--language.base", "base", "--run", "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "reached 0 of 0 RMSNorms: noise without RMSNorm" in err
    assert not (base.parent / "run").exists()


def test_the_extra_is_not_there(base, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, out, err = command("train", "qerl-arithmetic", *SMALL, "--language.base", "base", "--run", "run")
    assert (code, out) == (2, "")
    assert err == "distqtrl: language models need transformers: pip install 'distqtrl[llm]'\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return float('nan')", "the reward of the prompt '1+2=' is nan: return a finite number"),
        ("return 1 / 0", "the reward of the prompt '1+2=' failed: ZeroDivisionError: division by zero"),
        ("while True: pass", "the reward of the prompt '1+2=' took more than 0.5 s: make it faster"),
    ],
)
def test_a_reward_that_is_none_ends_the_run_in_a_line(body, said, base, command, monkeypatch):
    monkeypatch.setattr(tasks, "Own", lambda path: Own(path, limit_s=0.5))
    (base.parent / "task.py").write_text(TASK + body)
    own = ("--language.task", "task.py", "--run", "run")
    code, _, err = command("train", "qerl-arithmetic", *SMALL, "--language.base", "base", *own)
    assert code != 0
    (line,) = [line for line in err.splitlines() if line.startswith("distqtrl: ")]
    assert line.startswith("distqtrl: language.task = ")
    assert f"task.py: {said}" in line
    assert "Traceback" not in err


def test_ranks_with_different_bases(base, tmp_path):
    meet, task = Rendezvous(2), tasks.opened("arithmetic")
    bases = [checkpoint.opened(directory) for directory in (base, write(tmp_path / "other", scale=2.0))]
    prompts = [Prompts(Decoder(Model(each, "none", 2, ("proj",)), task, 3), [0], seed=0) for each in bases]

    def refused(comm):
        run = SimpleNamespace(environments=prompts[comm.rank], config=SimpleNamespace(subject="arithmetic"))
        with pytest.raises(Refused) as refused:
            compare(comm, run)
        return str(refused.value)

    one, other = threads.each(threads.members(Serial(), meet), refused, [meet])
    first, second = (each.sha256 for each in bases)
    assert one == other
    assert f"arithmetic: ranks found different language models: rank 0 {first}, rank 1 {second}: give" in one
