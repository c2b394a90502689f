"""The page of benchmarks/circuit.py."""

from lib import setting
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


def spread(times):
    q1, median, q3 = (1e3 * times[key] for key in ("q1_s", "median_s", "q3_s"))
    return f"{median:,.3g} ms ({q1:,.3g} to {q3:,.3g})"
