"""The gallery of presets: what each is, a learning curve and a film, of committed files alone."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from generated import ROOT, escaped, value

from distqtrl.config.run import Config
from distqtrl.config.sources import parent, preset, presets

RESULTS = ROOT / "benchmarks" / "results"
SHORT = "gallery/gallery"  # benchmarks/gallery.py: a short training and a film of every preset
Curve = tuple[list[float], list[float]]  # environment steps, returns


@dataclass(frozen=True)
class Shown:
    """Committed runs of a preset: the file below benchmarks/results, its runs, and how they differ from the preset."""

    file: str
    runs: Callable[[dict[str, Any]], Iterator[Curve]]
    what: str


def cells(arm: str, size: int) -> Callable[[dict[str, Any]], Iterator[Curve]]:
    """Greedy evaluations of an arm of benchmarks/compression.py."""

    def read(results: dict[str, Any]) -> Iterator[Curve]:
        (cell,) = (c for c in results["cells"] if (c["arm"], c["size"]) == (arm, size))
        return ((cell["env_steps"], returns) for returns in cell["validations"])

    return read


def case(name: str, key: str = "returns") -> Callable[[dict[str, Any]], Iterator[Curve]]:
    """Returns of training episodes of a case; its steps are those of all runs, or each run's own."""

    def read(results: dict[str, Any]) -> Iterator[Curve]:
        found = results["cases"][name]
        own = isinstance(found["env_steps"][0], list)
        steps = found["env_steps"] if own else [found["env_steps"]] * len(found[key])
        return zip(steps, found[key], strict=True)

    return read


def several(name: str) -> Callable[[dict[str, Any]], Iterator[Curve]]:
    """Returns of training episodes of a case of benchmarks/marl.py."""
    return lambda results: ((run["env_steps"], run["returns"]) for run in results["cases"][name]["runs"])


def device(name: str) -> Callable[[dict[str, Any]], Iterator[Curve]]:
    """Returns of training episodes of a case of benchmarks/devices.py."""
    return lambda results: ((r["env_steps"], r["return_mean"]) for r in results["runs"] if r["case"] == name)


PPO = "60,000 steps and 2 seeds, far from the end of learning; returns of training episodes"
FIXED = "circuit, fixed graph network"
CURVES = {
    "cartpole": Shown(
        "compression/cartpole", cells(FIXED, 128), "one rank with 8 environments, no early end; greedy evaluations"
    ),
    "cartpole-gnn": Shown(
        "devices/devices", device("exact"), "4 ranks, 76,800 steps, no early end; returns of training episodes"
    ),
    "hopper-generated": Shown("compression/hopper", cells(FIXED, 512), "one rank; greedy evaluations"),
    "walker2d-generated": Shown("tenth/walker2d", case("circuit", "validations"), "one rank; greedy validations"),
    "hopper": Shown("compression/hopper", cells("direct", 512), "one rank, learning rate 0.0003; greedy evaluations"),
    "ant": Shown("twins/ant", case("direct"), PPO),
    "halfcheetah": Shown("twins/halfcheetah", case("direct"), PPO),
    "walker2d": Shown("twins/walker2d", case("direct"), PPO),
    "humanoid": Shown("twins/humanoid", case("direct"), PPO),
    "qtrl-cartpole": Shown(
        "controls/cartpole", case("circuit", "curves"), "one rank; smoothed returns of training episodes"
    ),
    "qtrl-minigrid": Shown(
        "controls/minigrid", case("circuit", "curves"), "one rank; smoothed returns of training episodes"
    ),
    "coin-game": Shown("marl/coin-game", several("circuit"), "150,000 steps; returns of training episodes"),
    "simple-spread": Shown("marl/spread", several("circuit"), "120,000 steps; returns of training episodes"),
}
# the committed tables that have more numbers
TABLES = {
    "cartpole": ("solve/cartpole",),
    "acrobot": ("solve/acrobot",),
    "frozenlake": ("solve/frozenlake",),
    "pendulum": ("solve/pendulum",),
    "pendulum-sac": ("sac/pendulum",),
    "hopper-sac": ("sac/hopper",),
    "inverted-pendulum": ("search/inverted-pendulum",),
    "qtrl-cartpole": ("reproduce/cartpole",),
    "qtrl-cartpole-500": ("reproduce/cartpole",),
    "qtrl-minigrid": ("reproduce/minigrid",),
    "qtrl-minigrid-corrected": ("reproduce/minigrid", "speedup/minigrid"),
    "dist-qtrl": ("depth/minigrid",),
    "qerl-arithmetic": ("qerl/qerl",),
}


def gallery(folder: Path, address: str) -> str:
    """A section per preset, as Markdown; curves are drawn into a folder, which pages reach at this address."""
    lines = []
    for name, text in presets().items():
        config = preset(name)
        lines += [f"## {name}", "", f"{escaped(text)}.", ""]
        lines += [f"* {words}" for words in brief(config)]
        if below := parent(name):
            lines.append(f"* what it does not say itself is that of [{below}](#{below})")
        lines += [f"* `{started(name, config)}`", ""]
        lines += [*pictured(name, folder, address), ""]
    return "\n".join(lines)


def brief(config: Config) -> Iterator[str]:
    """The settings that tell one preset from another, in a few lines."""
    a, g, m, c = config.algorithm, config.generator, config.mapping, config.circuit
    unit = "prompt" if a.name == "grpo" else "environment"
    yield f"{config.subject}, {config.local_num} {unit}{'s' if config.local_num > 1 else ''} per rank"
    yield f"{a.name}, learning rate {a.learning_rate:g}" + (
        f", of the source {a.source_learning_rate:g}" if a.source_learning_rate else ""
    )
    if a.name == "grpo":
        yield f"factors of rank {config.adapter.rank}, base in {config.adapter.precision}, source {g.source}"
    else:
        hidden = value(config.policy.hidden).replace(" ", "-")
        yield f"policy with hidden layers {hidden}, {config.policy.activation}"
    if g.source == "circuit":
        qubits = "as many qubits as it takes" if c.qubits is None else f"{c.qubits} qubits"
        yield f"circuit {c.ansatz}, {c.layers} layers, {qubits}; mapping {m.kind}, {'' if m.trained else 'not '}trained"
    else:
        yield f"source {g.source}: no circuit"
    budgets = ((config.train.steps, "environment steps"), (config.train.updates, "updates"))
    yield "at most " + " and ".join(f"{most:,} {unit}" for most, unit in budgets if most is not None)


def started(name: str, config: Config) -> str:
    """The command that trains it."""
    return f"distqtrl train {name}" + (" --language.base DIRECTORY" if config.algorithm.name == "grpo" else "")


def short() -> dict[str, dict[str, Any]]:
    """What benchmarks/gallery.py wrote down of every preset."""
    found: dict[str, dict[str, Any]] = json.loads((RESULTS / f"{SHORT}.json").read_text())["presets"]
    return found


def curve(name: str, told: dict[str, Any]) -> Shown | None:
    """The committed runs that are drawn: another benchmark's, or else the short ones."""
    if name in CURVES or "curve" not in told:
        return CURVES.get(name)
    what = f"One rank, {extent(told)}; smoothed returns of training episodes"
    return Shown(SHORT, lambda _: zip(told["curve"]["env_steps"], told["curve"]["returns"], strict=True), what)


def extent(told: dict[str, Any]) -> str:
    """How long the short trainings were, beside what the preset may take.

    >>> extent({"unit": "steps", "of": 9000, "made": [2000], "target_reached": [False]})
    '2,000 of at most 9,000 steps, far from the end of training'
    >>> extent({"unit": "steps", "of": 9000, "made": [2000, 1500], "target_reached": [True, True]})
    '2,000 and 1,500 of at most 9,000 steps, where the target was reached'
    >>> extent({"unit": "updates", "of": 9000, "made": [9000], "target_reached": [False]})
    'all of its 9,000 updates'
    """
    made = " and ".join(f"{number:,}" for number in dict.fromkeys(told["made"]))
    if min(told["made"]) >= told["of"]:
        return f"all of its {told['of']:,} {told['unit']}"
    part = f"{made} of at most {told['of']:,} {told['unit']}"
    if all(told["target_reached"]):
        return f"{part}, where the target was reached"
    return part + (", far from the end of training" if 2 * max(told["made"]) <= told["of"] else "")


def pictured(name: str, folder: Path, address: str) -> Iterator[str]:
    """The curve, the film and the tables, or the words that there are none."""
    told = short().get(name, {})
    shown = curve(name, told)
    tables = [shown.file] if shown and shown.file != SHORT else []
    tables += [table for table in TABLES.get(name, ()) if table not in tables]
    if shown:
        number = draw(shown, folder / f"{name}.png")
        seeds = "1 seed" if number == 1 else f"{number} seeds and their mean"
        yield f"![learning curves of {name}]({address}/{name}.png)"
        yield ""
        yield f"{seeds}. {shown.what[0].upper()}{shown.what[1:]}."
    else:
        yield "No learning curve of this preset is committed."
    yield ""
    yield from filmed(name, told)
    if tables:
        yield ""
        yield "Numbers: " + ", ".join(f"[{table}](../benchmarks/results/{table}.md)" for table in tables) + "."


def filmed(name: str, told: dict[str, Any]) -> Iterator[str]:
    """The film with its caption, or the reason why there is none."""
    if "film" not in told:
        yield f"No film: {told['reason']}." if "reason" in told else "No film yet."
        return
    film = told["film"]
    yield f"![an episode of {name}](../benchmarks/results/gallery/{name}.gif)"
    yield ""
    length = f"{film['steps']:,} steps"
    if film["shown"] < film["steps"]:
        length += f", of which the first {film['shown']:,} are shown"
    mean = f"the mean of {told['greedy_episodes']} is {told['greedy'][0]:.4g}"
    first = {**told, "made": told["made"][:1], "target_reached": told["target_reached"][:1]}
    yield f"A greedy episode ({length}), return {film['return']:.4g} ({mean}),"
    yield f"after {extent(first)}."


def draw(shown: Shown, path: Path) -> int:
    """Draw a thin line per run and the mean of all where they have the same steps; returns how many runs there are."""
    from matplotlib.figure import Figure

    from distqtrl.report.figures import COLORS, styled

    results = json.loads((RESULTS / f"{shown.file}.json").read_text())
    curves = [(np.array(x, float), np.array(y, float)) for x, y in shown.runs(results)]
    with styled():
        figure = Figure(figsize=(5.2, 2.6), layout="constrained")
        axes = figure.subplots()
        for x, y in curves:
            axes.plot(x, y, color=COLORS[2], linewidth=0.8, alpha=0.5)
        grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 101)
        axes.plot(grid, np.mean([on(grid, x, y) for x, y in curves], axis=0), color=COLORS[1], linewidth=2)
        axes.set_xlabel("environment steps, all ranks")
        axes.set_ylabel("return")
        axes.set_xlim(left=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    return len(curves)


def on(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A curve at places of a grid; updates in which no episode ended have no return and are passed over."""
    there = np.isfinite(y)
    return np.interp(grid, x[there], y[there])
