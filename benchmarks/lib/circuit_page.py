"""The page of benchmarks/circuit.py."""

from lib import circuit_batches, setting
from lib.circuit_versions import COPIED, NAMED, PEERS


def fastest(row, peers):
    """(ratio to ours, name) of the fastest of these peers."""
    found = [(row["peers"][peer]["median_s"], peer) for peer in peers if "median_s" in row["peers"].get(peer, {})]
    seconds, peer = min(found)
    return seconds / row["ours"]["median_s"], peer


def table(results):
    """The results as Markdown."""
    rows = results["rows"]
    lines = [
        "# Circuit, value + gradient",
        "",
        setting.line(results),
        "",
        "Median (quartiles) of all calls, float64, one thread. The goals were set against PennyLane's default.qubit",
        "and lightning.qubit as they are installed; the last column is the ratio to the fastest of all versions below.",
        "",
        "| circuit | angles | ours | faster than the fastest peer | goal | reached | than the fastest of all |",
        "|---|--:|--:|---|--:|---|---|",
    ]
    for row in rows:
        (ratio, peer), (least, strongest) = fastest(row, NAMED), fastest(row, PEERS)
        goal = ("", "") if row["goal"] is None else (f"{row['goal']}x", "yes" if ratio >= row["goal"] else "**no**")
        lines.append(
            f"| {row['circuit']} | {row['angles']} | {spread(row['ours'])} | {ratio:.3g}x, {peer} "
            f"| {goal[0]} | {goal[1]} | {least:.3g}x, {strongest} |"
        )
    lines += ["", "## Every version", "", f"| circuit | {' | '.join(PEERS)} |", "|---" * (1 + len(PEERS)) + "|"]
    for row in rows:
        cells = [row["peers"].get(peer, {"problem": "not asked"}) for peer in PEERS]
        shown = [cell.get("problem") or spread(cell) for cell in cells]
        lines.append(f"| {row['circuit']} | {' | '.join(shown)} |")
    lines += [
        "",
        "## Memory traffic",
        "",
        "Bytes that ours reads and writes in memory (`lib/effort.py`), the copy bandwidth measured in the",
        f"same turns (bytes read + written, arrays of {COPIED >> 20} MiB), and the time that this gives. A state that",
        "fits in a cache does not wait for memory: ours is then bound by arithmetic. For the peers, one pass per gate",
        "is assumed.",
        "",
        "| circuit | ours moves | bandwidth | limit | ours / limit | an adjoint peer moves | a backprop peer moves |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        moved = [row["peers"].get(peer, {"bytes": 0})["bytes"] / 1e6 for peer in (NAMED[2], NAMED[0])]
        lines.append(
            f"| {row['circuit']} | {row['bytes'] / 1e6:,.3g} MB | {row['bandwidth'] / 1e9:.1f} GB/s "
            f"| {1e3 * row['limit_s']:.3g} ms | {row['ours']['median_s'] / row['limit_s']:.2f} "
            f"| {moved[0]:,.3g} MB | {moved[1]:,.3g} MB |"
        )
    lines += ["", "## float32", "", "| circuit | float32 | faster than float64 | largest error |", "|---|--:|--:|--:|"]
    for row in rows:
        single = row["float32"]
        ratio = row["ours"]["median_s"] / single["median_s"]
        lines.append(f"| {row['circuit']} | {spread(single)} | {ratio:.2f}x | {single['error']:.1e} |")
    lines += [
        "",
        f"Peak memory of one call at the largest n, beyond loaded code and inputs: "
        f"{results['memory_bytes'] / 1e6:,.3g} MB, {results['memory_states']:.2f} complex128 state vectors.",
    ]
    for name, seconds in results.get("first_use_s", {}).items():
        lines += ["", f"First answer in a new process, {name} of compiled code: {seconds:.1f} s."]
    return "\n".join(lines)


def batches(results):
    """The results of many circuits at once as Markdown."""
    titles = (*circuit_batches.OURS, *circuit_batches.PEERS)
    lines = [
        "# Many different circuits at once, value + gradient",
        "",
        setting.line(results),
        "",
        "K parameter sets and cotangents of one layout, float64; medians of all calls, microseconds per circuit. Peers",
        "may use 2 threads. Compilation is apart (below), answers were compared with ours before they were timed; a",
        f"cell that would take more than {results['call_s']} s a call is left out. `ry_cnot_ring` n=8 L=16 is the",
        "circuit of the preset `cartpole`.",
        "",
        f"| circuit | K | {' | '.join(titles)} |",
        "|---|--:|" + "--:|" * len(titles),
    ]
    for row in results["rows"]:
        cells = [row["cells"].get(title, {"problem": "not asked"}) for title in titles]
        shown = [cell.get("problem") or f"{1e6 * cell['median_s'] / row['circuits']:,.3g}" for cell in cells]
        lines.append(f"| {row['circuit']} | {row['circuits']:,} | {' | '.join(shown)} |")
    lines += [
        "",
        "| at the most circuits up to 256, 2 threads | faster than | times | goal | reached |",
        "|---|---|--:|--:|---|",
    ]
    for goal in results["goals"]:
        row = [r for r in results["rows"] if r["circuit"] == goal["circuit"] and r["circuits"] <= 256][-1]
        median = {title: cell["median_s"] for title, cell in row["cells"].items() if "median_s" in cell}
        peers = {title: seconds for title, seconds in median.items() if title in circuit_batches.PEERS}
        others = ["one by one"] + ([min(peers, key=peers.__getitem__)] if peers else [])
        for other, least in zip(others, goal["goals"], strict=False):
            times = median[other] / median["batch, 2 threads"]
            reached = "yes" if times >= least else "**no**"
            lines.append(f"| {row['circuit']}, K = {row['circuits']} | {other} | {times:,.3g} | {least} | {reached} |")
    lines += [
        "",
        "Seconds until the first answer in a new process: imports, compilation, one call. Ours found its code on disk.",
        "",
    ]
    lines += [f"| circuit | K | {' | '.join(titles)} |", "|---|--:|" + "--:|" * len(titles)]
    for row in results["rows"]:
        firsts = [row["cells"].get(title, {}).get("first_s") for title in titles]
        shown = ["" if first is None else f"{first:,.3g}" for first in firsts]
        lines.append(f"| {row['circuit']} | {row['circuits']:,} | {' | '.join(shown)} |")
    return "\n".join(lines)


def spread(times):
    q1, median, q3 = (1e3 * times[key] for key in ("q1_s", "median_s", "q3_s"))
    return f"{median:,.3g} ms ({q1:,.3g} to {q3:,.3g})"
