"""Files that this version wrote, changed by chance, and read again: each must be refused, or mean what it says.

    python tests/fuzzing.py 10000 [SEED]      so many changes, spread over all kinds of files; prints what came of them

A file is right when it is refused with one line (UserError), or when what was read of it, written again, is what the
file says: nothing converted, dropped or filled in.
"""

import json
import os
import random
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import tiny
from safetensors.numpy import save as packed

from distqtrl.allreduce.communicator import Serial
from distqtrl.config.run import Config, save
from distqtrl.config.sources import load, with_flags
from distqtrl.config.stages import Quantize
from distqtrl.errors import UserError
from distqtrl.export import manifest
from distqtrl.files import tensors as tensorfile
from distqtrl.policy import lower, policy_file
from distqtrl.policy.distribution import Categorical, Gaussian, SquashedGaussian
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.policy.policy_file import Policy
from distqtrl.quantize import program as programs
from distqtrl.record import checkpoint
from distqtrl.record import directory as run_directory
from distqtrl.record.history import keep_updates
from distqtrl.report import runs
from distqtrl.search import files
from distqtrl.training.build import prepare

HANGS_AFTER_S = 20
DEEP = "\x00deep\x00"  # stands for a value that is nested too deeply to be written by json
NUMBERS = [-1, 0, 1, 2, 3, 7, 255, 2**31, 2**53, 2**63, 10**18, -(10**18), 10**400, 0.5, 1e-300, 1e308, -1e308]
NUMBERS += [float("nan"), float("inf"), float("-inf")]
OTHERS = [None, True, False, "", "1", "none", "sigmoid", "x" * 100_000, "..", "/", "\0", "\ud800", [], {}, [[]], DEEP]
DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int64, np.bool_, np.uint8]
TINY = with_flags(
    Config(),
    tiny(
        generator_source="direct",
        policy_hidden=3,
        algorithm_rollout_steps=8,
        algorithm_value_hidden=4,
        train_updates=3,
        train_steps=None,
        train_checkpoint_every=1,
    ),
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in nested JSON."""
    found = [path]
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(inner, (*path, key))
    return found


def mutated(rng: random.Random, value: Any) -> str:
    """The text of a JSON value with one change: keys less, twice, renamed; other types, extremes, longer lists."""
    value = json.loads(json.dumps(value))
    *above, last = rng.choice(places(value)[1:])
    parent = value
    for key in above:
        parent = parent[key]
    old, kind = parent[last], rng.randrange(7)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice([last + "x", last.upper(), "format", "kind", ""])] = parent.pop(last)
    elif kind == 2 and isinstance(parent, dict):
        return _twice(value, last, rng.choice([old, *NUMBERS[:3]]))
    elif kind == 3 and isinstance(old, list):
        old.append(rng.choice([*(old or [1]), *OTHERS, *NUMBERS]))
    elif kind == 4:
        parent[last] = rng.choice([[old], {"a": old}, str(old), [old, old]])
    elif kind == 5 and isinstance(old, int | float):
        parent[last] = rng.choice([bool(old), float(old), -old, old + 1, str(old), old * 10**6])
    else:
        parent[last] = rng.choice([*NUMBERS, *OTHERS])
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 200_000 + "]" * rng.choice([0, 200_000]))


def _twice(value: Any, key: str, other: Any) -> str:
    text, mark = json.dumps(value), json.dumps(key) + ": "
    return text.replace(mark, f"{mark}{json.dumps(other)}, {mark}", 1)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some flipped, cut off, put in, or another beginning."""
    at = rng.randrange(len(data))
    return rng.choice(
        [
            lambda: data[:at],
            lambda: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            lambda: data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:],
            lambda: data[:at] + data[at + rng.randrange(1, 99) :],
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.decode("latin1").encode("utf-16"),
            lambda: b"",
        ]
    )()


def changed(rng: random.Random, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors with one of another type, shape, name or with an odd number."""
    tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    name = rng.choice(sorted(tensors))
    t, kind = tensors[name], rng.randrange(8)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[rng.choice([name + "x", name.upper(), "w_M", "scales_S", "../x"])] = t
    elif kind == 2:
        with np.errstate(all="ignore"):
            tensors[name] = t.astype(rng.choice(DTYPES))
    elif kind == 3:
        tensors[name] = rng.choice(
            [t.reshape(1, -1), t.reshape(-1)[:0], np.append(t, t)[: t.size + 1], t[..., None], t.reshape(-1)[:-1]]
        )
    elif t.size:
        odd = (
            rng.choice([np.nan, np.inf, -np.inf, -1, 1e30, 0.25, 0])
            if t.dtype.kind == "f"
            else rng.choice([-1, 9, 2**62])
        )
        t.reshape(-1)[rng.randrange(t.size)] = np.asarray(odd).astype(t.dtype)
    return tensors


def same(a: Any, b: Any) -> bool:
    """Equal JSON: 1 is 1.0, but no truth is a number; "none" and "null" are the configuration's words for null."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b) or (None in (a, b) and str(b if a is None else a).lower() in ("none", "null"))


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    def facts(t: np.ndarray) -> tuple:
        return t.dtype, t.shape, t.tobytes()

    return a.keys() == b.keys() and all(facts(a[name]) == facts(b[name]) for name in a)


def put(path: Path, text: str, tensors: dict[str, np.ndarray]) -> None:
    """A file of tensors with a right SHA-256, whatever it says."""
    tensors = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
    path.write_bytes(packed(tensors, metadata={"distqtrl": tensorfile._digest(text, tensors) + text}))


def policies() -> dict[str, Policy]:
    """One of every head, with and without training on integers."""
    out = {}
    for head in (Categorical(2, 1), Gaussian((-2.0, 0.0), (2.0, 0.1)), SquashedGaussian((-1.0,), (1.0,))):
        for settings in (None, Quantize(core_bits=(2, 3), per="channel")):
            architecture = Architecture(3, (4,), head.num_outputs, "tanh" if settings else "relu")
            w_M = torch.randn(architecture.num_weights, generator=torch.Generator().manual_seed(0))
            trained = settings and lower.quantizer(settings, architecture, head).trained()
            normalizer = Normalizer(7.0, np.array([0.1, -2.0, 3.0]), np.array([1.0, 2 / 3, 7.0]))
            origin = {"source": "circuit", "env_steps": 96, "seed": 0}
            agents = ("a", "b") if isinstance(head, Gaussian) else ()
            name = f"{type(head).__name__.lower()}-{bool(settings)}"
            out[name] = Policy(architecture, head, w_M, normalizer, {"id": "CartPole-v1"}, origin, trained, agents)
    return out


@dataclass
class Subject:
    """A kind of file: ``attempt`` changes one by chance and reads it; it returns whether what was read is what the file
    says, and raises UserError where it is refused."""

    name: str
    attempt: Callable[[random.Random], bool]


class Tensors:
    """Files of tensors: changed in their description, their tensors, or their bytes."""

    def __init__(self, path: Path, read: Callable[[Path], tuple[Any, dict[str, np.ndarray]]], format: str) -> None:
        self.path, self.read, self.whole = path, read, path.read_bytes()
        self.about, self.tensors = tensorfile.read(path, format, "")

    def __call__(self, rng: random.Random) -> bool:
        text, tensors, kind = json.dumps(self.about, sort_keys=True), self.tensors, rng.randrange(10)
        if kind < 6:
            text = mutated(rng, self.about)
        elif kind < 9:
            tensors = changed(rng, self.tensors)
        if kind < 9:
            put(self.path, text, tensors)
        else:
            self.path.write_bytes(damaged(rng, self.whole))
        about, found = self.read(self.path)
        return same(about, json.loads(text)) and equal(found, tensors)


def _policy(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    policy = policy_file.load(path)
    policy.act(np.random.default_rng(0).normal(size=(5, policy.architecture.num_inputs)).astype(np.float32))
    again = path.with_name("again")
    policy.save(again)
    return tensorfile.read(again, policy_file.FORMAT, "")


class Checkpoints(Tensors):
    """Checkpoints, whose numbers may be others; they are taken over by a run."""

    def __init__(self, folder: Path) -> None:
        self.folder, run = folder, prepare(TINY, Serial())
        run.environments.step(np.zeros(2, np.int64))
        learner = {f"policy0/{name}": t.numpy() for name, t in run.learner.tensors().items()}
        ledger = run.policies.generated.ledger()
        run.counters.update = 1
        state = checkpoint.State(asdict(run.counters), learner, run.environments.state(), ledger)
        checkpoint.save(folder, TINY, Serial(), state)
        (path,) = (folder / "checkpoints").iterdir()
        super().__init__(path, self._read, checkpoint.FORMAT)

    def _read(self, path: Path) -> tuple[Any, dict[str, np.ndarray]]:
        run = prepare(TINY, Serial(), self.folder)
        told, tensors = tensorfile.read(path, checkpoint.FORMAT, "")
        own = asdict(run.counters)
        about = {key: own.get(key, value) for key, value in told.items()}
        state = run.environments.state()
        if not run.restarted:  # a run says which environments it restarts
            tensors |= {f"environment/{name}": t for name, t in state.items()}
        learner = {f"learner/policy0/{name}": np.ascontiguousarray(t) for name, t in run.learner.tensors().items()}
        kept = {name: t for name, t in tensors.items() if name.startswith("learner/") and name not in learner}
        run.environments.close()
        return about, {**tensors, **learner, **kept}


class Text:
    """Text files; ``read`` gives what was understood."""

    def __init__(self, path: Path, value: Any, read: Callable[[Path], Any], only_given: bool = False) -> None:
        self.path, self.value, self.read, self.only_given = path, value, read, only_given

    def __call__(self, rng: random.Random) -> bool:
        if rng.randrange(10) < 8:
            data = mutated(rng, self.value).encode()
        else:
            data = damaged(rng, json.dumps(self.value).encode())
        self.path.write_bytes(data)
        found, said = self.read(self.path), json.loads(data.decode("utf-8-sig"))
        if not self.only_given:
            return same(found, said)
        return all(same(found[stage][key], x) for stage, keys in said.items() for key, x in keys.items() if x != "none")


class Lines:
    """metrics.jsonl of a run, beside its result.json: read by a report, and cut back by a resumed run."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
        self.folder, self.path, self.rows = folder, folder / "metrics.jsonl", rows
        (folder / "config.json").write_text(save(TINY))
        (folder / "result.json").write_text(json.dumps(result))

    def __call__(self, rng: random.Random) -> bool:
        lines = [json.dumps(row).encode() for row in self.rows]
        at = rng.randrange(len(lines))
        lines[at] = mutated(rng, self.rows[at]).encode() if rng.randrange(10) < 8 else damaged(rng, lines[at])
        data = b"\n".join(lines) + b"\n"
        self.path.write_bytes(data)
        run = runs.read(self.folder)
        if lacking := keep_updates(self.path, 2):
            raise UserError(lacking)  # said, and what is whole goes on
        kept = [json.loads(line) for line in self.path.read_bytes().splitlines()]
        if run.problem:
            return len(kept) == 2
        said = [json.loads(line) for line in data.splitlines()]
        return same(kept, said[:2]) and same(run.columns["env_steps"].tolist(), [row["env_steps"] for row in said])


METRICS = {"ranks": 1, "episodes": 7, "return_mean": 13.5, "return_smoothed": None, "approx_kl": 0.1, "cpu_s": 0.5}
METRICS |= {"wall_s": 0.07, "profile_s": {"rollout": 0.1, "write": 0.2}, "agent_returns": {"a": 1.0, "b": 2.0}}
RESULT = {"status": "complete", "evaluation": {"mean": 8.5, "std": 0.5, "min": 8.0, "max": 9.0, "episodes": 2}}
RESULT |= {"agents": {"a": 1.0}, "ranks": 1, "update": 3, "env_steps": 48, "episodes": 7, "train_s": 0.1}
MANIFEST = {
    "format": "distqtrl export 1",
    "policy": {"file": "policy.safetensors", "sha256": "0" * 64},
    "program": "1" * 64,
    "environment": TINY.environment.model_dump(mode="json"),
    "agents": ["a", "b"],
    "targets": ["c", "verilog"],
    "files": {"program.json": "2" * 64, "policy.c": "3" * 64},
    "verilog": {core: {"observations_per_beat": 1, "observation_bits": 16} for core in ("folded", "unrolled")},
}
SEARCH = {"format": "distqtrl search 1", "status": "complete", "settings": {"mode": "rule"}, "problem": ""}
SEARCH |= {"candidates": [{"name": "w4", "mean": 1.0, "gap": None, "gap_percent": 0.5, "passes": True}]}
SEARCH |= {
    "steps": [{"what": "width", "tried": ["w4"], "passing": [], "kept": "w4"}],
    "chosen": {"name": "w4", "seed": 1},
}


def subjects(folder: Path) -> list[Subject]:
    """All kinds of files, in this folder."""
    found = []
    for name, policy in policies().items():
        path = folder / f"{name}.safetensors"
        policy.save(path)
        found.append(Subject(f"policy {name}", Tensors(path, _policy, policy_file.FORMAT)))
        if policy.trained:
            text = programs.dumps(policy.program())
            read = lambda path: json.loads(programs.dumps(programs.loads(path.read_text(errors="replace"))))  # noqa: E731
            found.append(Subject(f"program {name}", Text(folder / "program.json", json.loads(text), read)))
    (folder / "run").mkdir()
    found.append(Subject("checkpoint", Checkpoints(folder / "run")))
    values = TINY.model_dump(mode="json")
    given = Text(folder / "c.json", values, lambda path: json.loads(save(load(path))), only_given=True)
    found.append(Subject("config", given))
    found.append(Subject("manifest", Text(folder / "manifest.json", MANIFEST, manifest.manifest)))
    found.append(Subject("search", Text(folder / "search.json", SEARCH, lambda path: files.found(path, "remedy"))))
    (folder / "result").mkdir()
    result = Text(folder / "result" / "result.json", RESULT, lambda path: run_directory.complete(path.parent))
    found.append(Subject("result", result))
    (folder / "metrics").mkdir()
    rows = [{"update": number, "env_steps": 16 * (number + 1), **METRICS} for number in range(3)]
    found.append(Subject("metrics", Lines(folder / "metrics", rows, RESULT)))
    return found


def verdict(subject: Subject, seed: int) -> str:
    """What came of one change: refused, the same; or what is wrong."""
    try:
        return "as it says" if subject.attempt(random.Random(seed)) else "CHANGED"
    except UserError as error:
        return "refused" if len(str(error).splitlines()) == 1 and len(str(error)) < 2000 else f"WORDS {error}"


def _hang(signum: int, frame: Any) -> None:
    raise TimeoutError("hangs")


def main(num: int, first: int) -> int:
    """Print what came of so many changes; returns how many are wrong."""
    signal.signal(signal.SIGALRM, _hang)
    warnings.simplefilter("error")
    os.environ["OMP_NUM_THREADS"] = "1"
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        every = subjects(Path(folder))
        for seed in range(first, first + num):
            subject = every[seed % len(every)]
            signal.alarm(HANGS_AFTER_S)
            try:
                found = verdict(subject, seed)
            except Exception as error:
                found = f"TRACEBACK {type(error).__name__}: {error}"
            signal.alarm(0)
            if found not in ("refused", "as it says"):
                print(f"{subject.name}, seed {seed}: {found[:300]}", flush=True)
            counts[f"{subject.name.split()[0]:<10} {found.split()[0]}"] += 1
    for name, count in sorted(counts.items()):
        print(f"{name:<22} {count:6,}")
    return sum(count for name, count in counts.items() if name.split()[-1].isupper())


if __name__ == "__main__":
    sys.exit(int(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0) > 0))
