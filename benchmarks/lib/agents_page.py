"""Pages and figures of marl.py's results."""

import numpy as np
from matplotlib.figure import Figure

from distqtrl.report import figures
from distqtrl.report.statistics import interval
from lib import runs
from lib.agents import Numbers, values

INSTALL = "pip install benchmarl==1.5.2 torchrl==0.11.1 tensordict==0.11.0 mpe2"
EQMARL = "arXiv 2405.17486, from the metrics in its repository, github.com/news-vt/eqmarl"
PUBLISHED = {  # parameters of policy and critic, mean of all 3,000 training episodes, of the last 100
    "eQMARL-Psi+, L = 5": ("136", "265", "21.09", "24.85"),
    "fCTDE, 24 hidden units": ("", "", "", "25.70"),
    "sCTDE, 24 hidden units": ("", "", "", "25.86"),
}
OPTIMUM, OWN_COINS = 27.37, 26.90


def of_spread(results: Numbers) -> str:
    """The results as Markdown."""
    lines = [
        *head(results, "simple_spread_v3 (3 agents, 25 steps), beside BenchMARL's MAPPO and IPPO"),
        "Mean over agents of an episode's undiscounted return, 100 episodes, which start alike on both sides: greedy,",
        "and with actions drawn. Rates are of the whole training, without the last evaluation.",
        "",
        "| | runs | trained, and the critic's | greedy, mean (95 % interval) | every seed | drawn "
        "| steps per CPU second, median | per second | circuit's by its (CPU; wall) |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    for name, case in results["cases"].items():
        lines.append(f"{start(name, case)} | {cell(case, 'sampled', 1)} | {rates(results, name)} |")
    return "\n".join([*lines, "", *notes(results)])


def of_coins(results: Numbers) -> str:
    """The results as Markdown."""
    lines = [
        *head(results, "CoinGame-2 (3 x 3, 2 agents, 50 steps), beside eQMARL's numbers"),
        "eQMARL's score: the sum over both agents of an episode's undiscounted return. Greedy: 100 episodes of the",
        "last policy. The last 100 episodes, and all, are of training, with actions drawn.",
        "",
        "| | runs | trained, and the critic's | greedy, mean (95 % interval) | every seed | last 100 | all |",
        "|---|--:|--:|--:|---|--:|--:|",
    ]
    for name, case in results["cases"].items():
        lines.append(f"{start(name, case)} | {cell(case, 'last', 2)} | {cell(case, 'training', 2)} |")
    for name, (policy, critic, every, last) in PUBLISHED.items():
        counts = f"{policy} + {critic}" if policy else ""
        lines.append(f"| {name}, published | | {counts} | | | {last} | {every} |")
    lines += [
        "",
        f"Published: {EQMARL};",
        f"its largest mean of ten epochs is 25.67. Optimum: {OPTIMUM} (exact, by backward induction); two players",
        f"who go straight for their own coins get {OWN_COINS:.2f}.",
        "",
    ]
    return "\n".join([*lines, *notes(results)])


def of_rate(results: Numbers) -> str:
    """The results as Markdown."""
    lines = [
        *head(results, "Rollouts of 16 copies of simple_spread_v3"),
        f"{results['steps']} steps of every copy a round, without learning; medians over the rounds.",
        "distqtrl: the preset's rollout, its weights made by the circuit once a round. BenchMARL: its MAPPO's policy",
        "(256-256) and collector (TorchRL's). Plain loop: PettingZoo and torch, the preset's policy (64-64), a forward",
        "pass per copy and step.",
        "",
        "| | rounds | steps per CPU second | per second | distqtrl's by its (CPU; wall) |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, case in results["cases"].items():
        lines.append(f"| {name} | {len(case['runs'])} of {case['of']} | {rates(results, name)} |")
    return "\n".join([*lines, "", *notes(results)])


def head(results: Numbers, title: str) -> list[str]:
    """Title, how it was made, and by which peer."""
    versions = ", ".join(f"{name} {version}" for name, version in (results.get("peer") or {}).items())
    peer = f"The peer's: {versions}." if versions else f"**No peer was run**: `{INSTALL}`, then --peer ITS_PYTHON."
    told = [] if results["task"] == "coin-game" else [peer]
    lines = runs.line(results, f"Seeds or rounds: {len(results['seeds'])}; steps: {results['steps']:,}.")
    return [f"# {title}", "", *lines, *told, ""]


def start(name: str, case: Numbers) -> str:
    """The first cells of a row."""
    counts = " + ".join(f"{x:,}" for x in case.get("parameters") or ())
    seeds = ", ".join(f"{x:.1f}" for x in values(case, "greedy"))
    return f"| {name} | {len(case['runs'])} of {case['of']} | {counts} | {cell(case, 'greedy', 2)} | {seeds}"


def cell(case: Numbers, key: str, digits: int) -> str:
    """Mean, and its interval where there are two runs."""
    x = values(case, key)
    if not len(x):
        return ""
    bounds = interval(lambda drawn: float(drawn.mean()), x) if len(x) > 1 else ()
    return f"{x.mean():.{digits}f}" + (f" ({' to '.join(f'{bound:.{digits}f}' for bound in bounds)})" if bounds else "")


def rates(results: Numbers, name: str) -> str:
    """Cells of the median rates, and of how they compare."""
    keys, case, ratio = ("steps_per_cpu_s", "steps_per_s"), results["cases"][name], results["ratios"].get(name)
    cells = [f"{np.median(values(case, key)):,.0f}" if case["runs"] else "" for key in keys]
    return " | ".join([*cells, "; ".join(f"{ratio[key]:.2f}" for key in keys) if ratio else ""])


def notes(results: Numbers) -> list[str]:
    """Verdicts, and how far to trust them."""
    told = [f"* {text}" for text in results["verdicts"]]
    return [*told, "", runs.CAUTION] if told else []


def figure(results: Numbers) -> Figure:
    """Every run's score; and smoothed returns of training over environment steps."""
    cases = {name: case for name, case in results["cases"].items() if case["runs"]}
    learned = results["task"] != "rate"
    drawn, (left, *right) = figures.panels(1 + learned)
    key = "greedy" if learned else "steps_per_cpu_s"
    figures.scores(left, {name: values(case, key).tolist() for name, case in cases.items()})
    left.set_xlabel("greedy return" if learned else "steps per CPU second")
    if results["task"] == "coin-game":
        left.axvline(OPTIMUM, color="0.5", linestyle=":")
    for axes in right:
        for number, (name, case) in enumerate(cases.items()):
            x, y = np.array(case["runs"][0]["env_steps"]), np.array([run["returns"] for run in case["runs"]])
            figures.band(axes, x, y, number, name)
        axes.set_xlabel("environment steps")
        axes.set_ylabel("return of training")
        axes.legend(frameon=False, fontsize=7)
    drawn.suptitle(f"{results['task']}: IQM and 95 % interval, {len(results['seeds'])} seeds")
    return drawn
