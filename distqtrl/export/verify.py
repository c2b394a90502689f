"""Proof that an exported folder says on every target what the interpreter says, vector by vector, without tolerance."""

import ctypes
import hashlib
import importlib.util
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from distqtrl.config import Environment
from distqtrl.export import cuda, episodes, simulate, synthesis, tools
from distqtrl.export import manifest as manifests
from distqtrl.export.manifest import read
from distqtrl.export.tools import Missing
from distqtrl.policy import policy_file
from distqtrl.quantize.program import Ints, Program, Scale

MANIFEST = "manifest.json"
FORMAT = "distqtrl export 1"
EQUAL, BUILT, DIFFERENT, SKIPPED = "equal", "built", "DIFFERENT", "skipped"
PARTNER = "partner-"  # policy files of the other agents
NETLIST_VECTORS = 100  # of a synthesized netlist, whose every change of a net is counted
ICARUS_VECTORS = 1000
PART = 65_536  # vectors that the interpreter takes at once
CORTEX_M = ["-mcpu=cortex-m4", "-mthumb", "-Os", "-ffreestanding", "-ffunction-sections", "-fdata-sections"]
CORTEX_M += ["-fstack-usage", "-nostdlib", "-Wl,--gc-sections", "-Wl,-e,policy_step"]


@dataclass(frozen=True)
class Check:
    """What one target did (equal, built but not run, DIFFERENT, skipped), over how many vectors, what there is to say,
    and what was counted on the way."""

    target: str
    status: str
    vectors: int = 0
    detail: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def manifest(folder: Path) -> dict[str, Any]:
    """The folder's manifest; raises UserError where it is none."""
    return manifests.manifest(folder / MANIFEST)


def checks(
    folder: Path, num_vectors: int, num_episodes: int, targets: tuple[str, ...] = (), netlists: bool = False
) -> Iterator[Check]:
    """Every check of a folder: its files, each target (of those named), and C in the environment."""
    about = manifest(folder)
    program, seen_BO, seen_BA = read(folder)
    x_BO = vectors(program, seen_BO, num_vectors, seed=0)
    y_BA = np.concatenate([program.run(part) for part in _parts(x_BO, PART)])
    yield _files(folder, about)
    same = bool((program.run(seen_BO) == seen_BA).all())
    yield Check("interpreter", EQUAL if same else DIFFERENT, len(seen_BO), "program.json on vectors.csv")
    wanted = [t for t in about["targets"] if not targets or t in targets]
    made = {name: check for target in wanted for name, check in TARGETS[target].items()}
    if netlists and "verilog" in wanted:
        made |= NETLISTS
    with ThreadPoolExecutor(2) as pool:  # most of it waits for a tool
        todo = [pool.submit(_checked, name, check, folder, program, x_BO, y_BA) for name, check in made.items()]
        for future in todo:
            yield future.result()
    if "c" in wanted:
        yield _closed_loop(folder, program, about, num_episodes)


def vectors(program: Program, seen_BO: Ints, num: int, seed: int) -> Ints:
    """Integer observations: every one, or one for every combination of input levels, where num is enough; and up to
    num recorded ones, ones near them, corners, and anything."""
    rng, every_BO = np.random.default_rng(seed), _every(program, num, seed)
    low, high = int(program.inputs.low_N[0]), int(program.inputs.high_N[0])
    width, num = len(program.input_fraction_O), num - len(every_BO)
    quarter = num // 4
    near = seen_BO[rng.integers(len(seen_BO), size=quarter)]
    spread = np.maximum(np.ptp(seen_BO, axis=0), 8)
    near_BO = (near + rng.integers(-spread, spread + 1, near.shape)).clip(low, high)
    corners_BO = rng.choice(np.array([low, low + 1, -1, 0, 1, high - 1, high]), (quarter, width))
    anything_BO = rng.integers(low, high + 1, (num - 3 * quarter, width))
    seen_BO = seen_BO[np.arange(quarter) % len(seen_BO)]
    return np.concatenate([every_BO, seen_BO, near_BO, corners_BO, anything_BO])


def _every(program: Program, num: int, seed: int) -> Ints:
    """All observations, or one of every combination of levels that the first operation tells apart; none beyond num."""
    low, high = int(program.inputs.low_N[0]), int(program.inputs.high_N[0])
    width, first = len(program.input_fraction_O), program.ops[0]
    x_BO = np.repeat(np.arange(low, high + 1)[:, np.newaxis], width, axis=1)
    if len(x_BO) ** width <= num:
        choices = list(x_BO.T)
    elif isinstance(first, Scale):
        shuffled = np.random.default_rng(seed).permutation(x_BO)
        level_BO = first(shuffled)
        choices = [shuffled[np.unique(level_BO[:, i], return_index=True)[1], i] for i in range(width)]
    else:
        return x_BO[:0]
    if np.prod([float(len(choice)) for choice in choices]) > num:
        return x_BO[:0]
    return np.stack(np.meshgrid(*choices, indexing="ij"), -1).reshape(-1, width)


def loader(folder: Path) -> ModuleType:
    """The folder's own Python module for its C library."""
    spec = importlib.util.spec_from_file_location("policy", folder / "policy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checked(name: str, check: Callable[..., Check], folder: Path, program: Program, x: Ints, y: Ints) -> Check:
    try:
        with tempfile.TemporaryDirectory() as place:
            return check(name, folder, Path(place), program, x, y)
    except Missing as error:
        return Check(name, SKIPPED, 0, str(error))
    except Exception as error:  # a damaged file can make a tool fail in any way
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Check(name, DIFFERENT, 0, lines[0] if lines else type(error).__name__)


def _files(folder: Path, about: dict[str, Any]) -> Check:
    changed = [name for name, known in about["files"].items() if digest(folder / name) != known]
    detail = f"{', '.join(changed)} not as exported" if changed else f"{len(about['files'])} files as exported"
    return Check("files", DIFFERENT if changed else EQUAL, 0, detail)


def digest(path: Path) -> str:
    """SHA-256 of a file; "missing" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def _parts(x: np.ndarray, most: int) -> list[np.ndarray]:
    """Vectors in order, in parts of no more than so many."""
    return np.array_split(x, -(-len(x) // most))


def _few(x: Ints, y: Ints) -> tuple[Ints, Ints]:
    """No more than ICARUS_VECTORS of them, evenly spread."""
    step = -(-len(x) // ICARUS_VECTORS)
    return x[::step], y[::step]


def _equal(y_BA: np.ndarray, expected_BA: Ints) -> None:
    """Raises AssertionError that names the first difference."""
    wrong = (y_BA != expected_BA).any(-1)
    if wrong.any():
        first = int(wrong.argmax())
        raise AssertionError(
            f"{wrong.sum():,} of {len(wrong):,} vectors; number {first}: {y_BA[first].tolist()}, "
            f"not {expected_BA[first].tolist()}"
        )


def _c(name: str, folder: Path, place: Path, program: Program, x: Ints, y: Ints) -> Check:
    compiler = tools.compiler()
    _equal(loader(folder).Policy().batch(x), y)
    return Check(name, EQUAL, len(x), Path(compiler).name)


def cortex_m(name: str, folder: Path, place: Path, program: Program, x: Ints, y: Ints) -> Check:
    """policy_step linked for a Cortex-M4: what it needs of flash and of memory."""
    command = [tools.arm(), *CORTEX_M, "-o", "policy.elf", str(folder.resolve() / "policy.c"), "-lgcc"]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    size = subprocess.check_output(["arm-none-eabi-size", "policy.elf"], cwd=place, text=True)
    text, data, bss = map(int, size.splitlines()[1].split()[:3])
    stacks = [line.split("\t") for path in place.glob("*.su") for line in path.read_text().splitlines()]
    stack = sum(int(words[1]) for words in stacks if not words[0].endswith(("policy_batch", "policy_convert")))
    figures = {"flash": text + data, "memory": data + bss, "stack": stack}
    detail = f"Cortex-M4: {text + data:,} bytes of flash, {data + bss:,} of memory, at most {stack:,} of stack"
    return Check(name, BUILT, 0, detail, figures)


def _onnx(name: str, folder: Path, place: Path, program: Program, x: Ints, y: Ints) -> Check:
    try:
        import onnxruntime
    except ImportError:
        raise Missing("no onnxruntime: install distqtrl[onnx]") from None
    session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    found = [session.run(None, {"observation": part})[0] for part in _parts(x.astype(np.int32), 4096)]
    _equal(np.concatenate(found), y)
    return Check(name, EQUAL, len(x), f"onnxruntime {onnxruntime.__version__}")


def _cuda(name: str, folder: Path, place: Path, program: Program, x: Ints, y: Ints) -> Check:
    library = place / "policy.so"
    command = [tools.nvcc(), "-O3", "-shared", "-Xcompiler", "-fPIC", "-o", str(library), str(folder / "policy.cu")]
    subprocess.run(command, check=True, capture_output=True)
    rows = np.ascontiguousarray(x, np.int16 if program.input_bits <= 16 else np.int32)
    out = np.empty(y.shape, np.int32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (rows, out)]
    error = ctypes.CDLL(str(library)).policy_batch_cuda(*pointers, ctypes.c_int32(len(rows)))
    if error:
        return Check(name, BUILT, 0, f"by nvcc, and not run: no GPU here (CUDA error {error})")
    _equal(out, y)
    return Check(name, EQUAL, len(x), "on the GPU")


def _torch(name: str, folder: Path, place: Path, program: Program, x: Ints, y: Ints) -> Check:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = [cuda.run(program, torch.from_numpy(part).to(device)) for part in _parts(x, PART)]
    _equal(torch.cat(found).cpu().numpy(), y)
    return Check(name, EQUAL, len(x), f"torch on {device}")


def _verilog(core: str) -> Callable[..., Check]:
    def check(name: str, folder: Path, place: Path, program: Program, x: Ints, y: Ints) -> Check:
        text, lanes = _core(folder, core)
        simulator = simulate.build(text, f"policy_{core}", place)
        found, clocks = simulate.run(simulator, program, x, lanes)
        _equal(found, y)
        few_x, few_y = _few(x, y)
        _equal(simulate.run(simulator, program, few_x, lanes, stall=3)[0], few_y)
        return Check(name, EQUAL, len(x), f"Verilator, {clocks} clocks from observation to action", {"clocks": clocks})

    return check


def _icarus(core: str) -> Callable[..., Check]:
    def check(name: str, folder: Path, place: Path, program: Program, x: Ints, y: Ints) -> Check:
        text, lanes = _core(folder, core)
        x, y = _few(x, y)
        _equal(simulate.icarus(text, f"policy_{core}", place, program, x, lanes), y)
        return Check(name, EQUAL, len(x), "Icarus")

    return check


def _netlist(core: str) -> Callable[..., Check]:
    def check(name: str, folder: Path, place: Path, program: Program, x: Ints, y: Ints) -> Check:
        text, lanes = _core(folder, core)
        top, (_, x, y) = f"policy_{core}", read(folder)
        x, y = x[:NETLIST_VECTORS], y[:NETLIST_VECTORS]
        simulator = simulate.build(synthesis.netlist(text, top), top, place, tools.cells())
        _equal(simulate.run(simulator, program, x, lanes)[0], y)
        toggles = simulate.toggles(simulator) / len(x)
        return Check(name, EQUAL, len(x), f"7 series, {toggles:,.0f} toggles per action", {"toggles": toggles})

    return check


def _core(folder: Path, core: str) -> tuple[str, int]:
    """A core's text, and how many observations it takes per beat."""
    return (folder / f"policy_{core}.v").read_text(), manifest(folder)["verilog"][core]["observations_per_beat"]


def _closed_loop(folder: Path, program: Program, about: dict[str, Any], num: int) -> Check:
    """The C policy drives the environment, beside the policies of other agents; the interpreter looks on."""
    environment, agents = Environment(**about["environment"]), tuple(about.get("agents", ()))
    partners = [policy_file.load(path) for path in sorted(folder.glob(f"{PARTNER}*.safetensors"))]
    try:
        tools.compiler()
        policy = loader(folder).Policy()
    except (Missing, subprocess.CalledProcessError) as error:
        return Check("closed loop", SKIPPED, 0, f"no C library: {error}")
    steps = wrong = 0

    def act(obs_BO: np.ndarray) -> np.ndarray:
        nonlocal steps, wrong
        actions = np.array([policy.act(row) for row in obs_BO])
        expected = program.act(obs_BO)
        steps, wrong = steps + len(obs_BO), wrong + int((actions.reshape(expected.shape) != expected).any())
        return actions.reshape(expected.shape).astype(expected.dtype)

    returns = episodes.returns(environment, agents, partners, act, num, "evaluation")
    detail = f"{num} episodes of {environment.id} driven by C, return {returns.mean():.2f}"
    return Check("closed loop", DIFFERENT if wrong else EQUAL, steps, detail, {"return": float(returns.mean())})


CORES = ("folded", "unrolled")
TARGETS: dict[str, dict[str, Callable[..., Check]]] = {
    "c": {"c": _c, "c cortex-m": cortex_m},
    "onnx": {"onnx": _onnx},
    "cuda": {"cuda": _cuda, "torch": _torch},
    "verilog": {f"verilog {core}": _verilog(core) for core in CORES}
    | {f"icarus {core}": _icarus(core) for core in CORES},
}
NETLISTS = {f"netlist {core}": _netlist(core) for core in CORES}
