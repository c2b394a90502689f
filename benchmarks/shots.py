"""What finite shots do to the generated weights: spread, and the bias that the mapping adds.

    python benchmarks/shots.py           writes benchmarks/results/shots/shots.*
    python benchmarks/shots.py --quick   few draws; writes nothing unless -o is given

Relative frequencies are unbiased, weights are not: the mapping is not linear in p, so E w(p_hat) differs from w(p)
by a term of order 1/shots. Compared at the same number of shots in all:

    plain        w of all shots
    repeated     the mean of w over 4 groups of a quarter of the shots each
    jackknife    2 w(all) - the mean of w over the two halves, which cancels the term of order 1/shots
    antithetic   half of the shots drawn with u, half with 1 - u; a simulation can do that, a QPU cannot
"""

import numpy as np
import torch
from lib import setting
from matplotlib.figure import Figure

from distqtrl.config.sources import preset, with_flags
from distqtrl.generator.generator import Generator

ESTIMATES = ("plain", "repeated", "jackknife", "antithetic")
COLORS = dict(zip(ESTIMATES, ("#000000", "#0072B2", "#D55E00", "#009E73"), strict=True))  # Okabe & Ito
LAYERS = [(640, 4), (258, 128)]  # weights and fan-in of a 4-128-2 policy
CHUNKS = {"6 qubits": "16", "10 qubits": "1"}  # weights made by one basis state


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--shots", type=int, nargs="+", default=[64, 256, 1024, 4096, 16384])
    parser.add_argument("--draws", type=int, default=2000)
    args = parser.parse_args()
    if args.quick:
        args.shots, args.draws = [64, 256], 50
    rows = []
    for name, chunk in CHUNKS.items():
        generator = Generator(with_flags(preset("cartpole-gnn"), {"mapping.chunk": chunk}), LAYERS)
        generator.set_precision(torch.float64)
        for shots in args.shots:
            rows += [{"size": name, **measured(generator, e, shots, args.draws)} for e in ESTIMATES]
    results = {**setting.facts("torch", "numpy", "numba"), "draws": args.draws, "rows": rows}
    setting.save(args, "shots/shots", results, table(results), figure)


def weights(generator: Generator, p_S: np.ndarray) -> np.ndarray:
    """w_M of given probabilities."""
    assert generator.mapping is not None
    with torch.inference_mode():
        w_M: np.ndarray = generator.mapping(torch.from_numpy(p_S)).numpy()
    return w_M


def measured(generator: Generator, estimate: str, shots: int, draws: int) -> dict:
    """Bias and spread of the weights, and bias of the probabilities, as norms relative to that of the exact ones.

    The bias of a mean of finitely many draws contains their spread; it is subtracted, and 0 says that nothing is left.
    """
    with torch.inference_mode():
        p_S = generator.probabilities().numpy()
    exact_M = weights(generator, p_S)
    rng = np.random.default_rng([shots, ESTIMATES.index(estimate)])
    found = [drawn(generator, estimate, p_S, shots, rng) for _ in range(draws)]
    w_KM, p_KS = np.stack([w for w, _ in found]), np.stack([p for _, p in found])
    return {
        "estimate": estimate,
        "shots": shots,
        **{f"weights_{name}": value for name, value in _errors(w_KM, exact_M).items()},
        **{f"probabilities_{name}": value for name, value in _errors(p_KS, p_S).items()},
    }


def _errors(x_KN: np.ndarray, exact_N: np.ndarray) -> dict:
    variance = x_KN.var(axis=0, ddof=1).sum()
    squared = ((x_KN.mean(axis=0) - exact_N) ** 2).sum() - variance / len(x_KN)
    norm = np.linalg.norm(exact_N)
    return {
        "bias": float(np.sqrt(max(squared, 0.0)) / norm),
        "resolution": float(np.sqrt(variance / len(x_KN)) / norm),
        "spread": float(np.sqrt(variance) / norm),
    }


def drawn(
    generator: Generator, estimate: str, p_S: np.ndarray, shots: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One estimate of w_M, and the relative frequencies of all its shots."""
    if estimate == "antithetic":
        u = rng.random(shots // 2)
        states = np.searchsorted(np.cumsum(p_S), np.concatenate([u, 1 - u]) * p_S.sum(), side="right")
        p = np.bincount(np.minimum(states, len(p_S) - 1), minlength=len(p_S)) / shots
        return weights(generator, p), p
    groups = {"plain": 1, "repeated": 4, "jackknife": 2}[estimate]
    p_GS = np.stack([rng.multinomial(shots // groups, p_S) for _ in range(groups)]) / (shots // groups)
    p, of_groups = p_GS.mean(axis=0), [weights(generator, part) for part in p_GS]
    if estimate == "jackknife":
        return 2 * weights(generator, p) - np.mean(of_groups, axis=0), p
    return np.mean(of_groups, axis=0), p


def table(results: dict) -> str:
    """The results as Markdown."""
    lines = [
        "# Bias and spread of generated weights against shots",
        "",
        setting.line(results),
        "",
        "The 898 weights of `cartpole-gnn` at its start, with 6 qubits as in the preset and with 10 (one weight",
        f"per basis state); {results['draws']:,} draws. Norms relative to the exact vector's; < marks a bias below",
        "what the draws resolve.",
        "",
        "| size | shots | estimate | bias of w | spread of w | bias of p | spread of p |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for row in results["rows"]:
        cells = []
        for what in ("weights", "probabilities"):
            bias, resolution = row[f"{what}_bias"], row[f"{what}_resolution"]
            shown = f"< {resolution:.1e}" if bias < resolution else f"{bias:.1e}"
            cells += [shown, f"{row[f'{what}_spread']:.1e}"]
        lines.append(f"| {row['size']} | {row['shots']:,} | {row['estimate']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(results: dict) -> Figure:
    """Bias (where it is resolved) and spread of the weights against shots."""

    drawing = Figure(figsize=(9, 4.2), layout="constrained")
    panels = drawing.subplots(1, len(CHUNKS), sharex=True, sharey=True)
    for panel, size in zip(panels, CHUNKS, strict=True):
        for estimate in ESTIMATES:
            rows = [row for row in results["rows"] if (row["size"], row["estimate"]) == (size, estimate)]
            shots, color = [row["shots"] for row in rows], COLORS[estimate]
            resolved = [row["weights_bias"] >= row["weights_resolution"] for row in rows]
            bias = [row["weights_bias"] if seen else np.nan for row, seen in zip(rows, resolved, strict=True)]
            panel.loglog(shots, bias, "o-", color=color, label=f"{estimate}: bias")
            panel.loglog(shots, [row["weights_spread"] for row in rows], ":", color=color, label="spread")
        panel.set_xlabel("shots in all")
        panel.set_title(f"{size}: error of the weights")
    panels[0].set_ylabel("norm relative to the exact weights'")
    panels[-1].legend(frameon=False, fontsize=9, ncols=2)
    return drawing


if __name__ == "__main__":
    main()
