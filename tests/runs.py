"""Trainings that take no time: their flags, runs that are made once and copied, and processes that start at once."""

import contextlib
import io
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from distqtrl.config import sources

# what differs between two runs that are otherwise bit for bit the same
TIMES = ("wall_s", "steps_per_s", "profile_s", "setup_s", "train_s", "cpu_s", "wait_s", "metered", "energy")
RANK_SERVER = Path(__file__).with_name("rank_server.py")
UNJUDGED = {  # nothing but the end is evaluated
    "evaluate.every": None,
    "evaluate.target": None,
    "evaluate.keep": "last",
    "evaluate.episodes": 2,
}
TRAINED_MAPPING = {  # a mapping that is trained, in the place of the one that preset cartpole draws once
    "circuit.ansatz": "u3_cu3_ring",
    "circuit.layers": 3,
    "circuit.qubits": None,
    "generator.whiten": False,
    "mapping.trained": True,
    "mapping.output": "fan_in",
    "mapping.feature": "tanh",
}
TINY = {
    **TRAINED_MAPPING,
    "mapping.kind": "mlp",
    "mapping.chunk": 4,
    "policy.hidden": [4],
    "algorithm.value_hidden": [8],
    "algorithm.rollout_steps": 16,
    "environment.local_num": 2,
    **UNJUDGED,
}


@contextlib.contextmanager
def rank_server(env: Mapping[str, str] | None = None) -> Iterator[Path]:
    """The socket of a server of ranks (rank_server.py)."""
    path = Path(tempfile.mkdtemp(prefix="ranks-")) / "socket"  # a short name
    path.with_name("socket.d").mkdir()
    command, pipe = [sys.executable, str(RANK_SERVER), str(path)], subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "serves\n"
        yield path
        process.stdin.close()
    shutil.rmtree(path.parent)


def of_environments() -> list[str]:
    """The presets that train in an environment: all but those of language models, which need a base."""
    return sorted(name for name in sources.presets() if sources.preset(name).algorithm.name != "grpo")


def tiny(**changes: object) -> dict[str, str]:
    """Flags of a tiny training, as text, with these on top: tiny(train_steps=96) has {"train.steps": "96"}."""
    return texts(TINY | {name.replace("_", ".", 1): value for name, value in changes.items()})


def texts(values: Mapping[str, object]) -> dict[str, str]:
    """The same flags as text; None is none, and a list has commas."""

    def text(value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return "none" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)

    return {name: text(value) for name, value in values.items()}


def as_words(*flags: Mapping[str, object]) -> list[str]:
    """Flags as words of a command line; of tables, the last that has a flag counts."""
    merged = {name: value for table in flags for name, value in texts(table).items()}
    return [word for name, value in merged.items() for word in (f"--{name}", value)]


def trained(run: Path, *words: object, preset: str = "cartpole") -> Path:
    """The run directory, after training there in this process."""
    from distqtrl.cli import main as cli  # torch reads its number of threads, which conftest.py sets, as it is loaded

    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["train", preset, "--run", str(run), *map(str, words)]) == 0
    return run


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    returncode: int
    stdout: str
    stderr: str


def forked(action: Callable[..., Any], *args: object, timeout: float = 120, cwd: Path | None = None) -> Ended:
    """action(*args), whose result is the exit code, in a process of its own, which has loaded what is loaded here.

    For what looks at a process from outside: its streams and its exit code. Nothing that it changes is seen here.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        process = started(action, *args, out=folder / "out", err=folder / "err", cwd=cwd)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{args} did not end within {timeout} s: {(folder / 'err').read_text()}")
        return Ended(process.exitcode, (folder / "out").read_text(), (folder / "err").read_text())


def started(action: Callable[..., Any], *args: object, out: Path, err: Path, cwd: Path | None = None) -> BaseProcess:
    """The process, which may still run."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(action, args, out, err, cwd))
    process.start()
    return process


def _run(action: Callable[..., Any], args: tuple[object, ...], out: Path, err: Path, cwd: Path | None) -> None:
    with out.open("w", buffering=1) as stdout, err.open("w", buffering=1) as stderr:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        if cwd is not None:
            os.chdir(cwd)
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                sys.exit(action(*args))
            except SystemExit as leaving:  # multiprocessing would print its words elsewhere
                if isinstance(leaving.code, str):
                    print(leaving.code, file=stderr)
                raise


def script(path: Path, *words: object) -> None:
    """What ``python PATH`` does, for a fork."""
    sys.argv, sys.path[:0] = [str(path), *map(str, words)], [str(path.parent)]
    runpy.run_path(str(path), run_name="__main__")
