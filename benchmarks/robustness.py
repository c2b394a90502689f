"""How much noise on its observations a policy bears: floating point beside the integers that search-bits chose.

    distqtrl search-bits hopper -o hopper-bits
    python benchmarks/robustness.py hopper-bits             writes benchmarks/results/robustness/hopper-bits.*
    python benchmarks/robustness.py hopper-bits --quick     one episode; writes nothing unless -o is given

After arXiv 2511.07046, figure 3: normal noise of deviation 0 to 0.5 is added to the normalised observation; each seed's
policy plays 10 greedy episodes. Both policies meet the same episodes and the same noise.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from lib import setting
from matplotlib.figure import Figure

from distqtrl.config.stages import Environment
from distqtrl.environment.rollout import play
from distqtrl.environment.vector import Environments
from distqtrl.policy import policy_file
from distqtrl.policy.policy_file import Policy
from distqtrl.report import figures
from distqtrl.report.statistics import interval

SIGMAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("search", type=Path, help="a complete folder of search-bits")
    parser.add_argument("--episodes", type=int, default=10)
    args = parser.parse_args()
    if args.quick:
        args.episodes = 1
    about = json.loads((args.search / "search.json").read_text())
    if not about["chosen"]:
        parser.error(f"{args.search}: nothing is chosen there; run distqtrl search-bits to its end")
    names = {"floating point": about["baseline"]["name"], "integers": about["chosen"]["name"]}
    cases = {kind: curves(args, about["settings"]["seeds"], name) for kind, name in names.items()}
    policy = policy_file.load(next(args.search.glob("runs/*/policy.safetensors")))
    results = {
        **setting.facts("torch", "numpy", "gymnasium", "mujoco"),
        **{"environment": policy.environment["id"], "episodes": args.episodes, "sigmas": SIGMAS},
        **{"names": names, "cases": cases, "search_commit": about["commit"], "seeds": about["settings"]["seeds"]},
    }
    name = f"robustness/{args.search.resolve().name.removeprefix('search-')}"
    setting.save(args, name, results, table(results), figure)


def curves(args: argparse.Namespace, seeds: list[int], name: str) -> list[list[float]]:
    """Mean return by seed and deviation."""
    runs = [args.search / "runs" / f"{name}-seed{seed}" / "policy.safetensors" for seed in seeds]
    policies = [policy_file.load(run) for run in runs if run.exists()]  # a training that diverged left none
    return [[returns(policy, sigma, args.episodes) for sigma in SIGMAS] for policy in policies]


def returns(policy: Policy, sigma: float, episodes: int) -> float:
    """Mean return of greedy episodes whose normalised observations have noise."""
    environments = Environments(Environment(**policy.environment), range(episodes), 0, "validation")
    rng, (_, scale_O, _) = np.random.default_rng(0), policy.normalizer.affine

    def act(obs_BO: np.ndarray) -> np.ndarray:
        noise_BO = sigma * rng.standard_normal(obs_BO.shape) / scale_O
        return policy.act((obs_BO + noise_BO).astype(np.float32))

    found, _ = play(environments, act)
    environments.close()
    return float(found.mean())


def table(results: dict) -> str:
    """The results as Markdown."""
    cases = {kind: np.array(rows) for kind, rows in results["cases"].items()}
    lines = [
        f"# Noise on the observations: {results['environment']}",
        "",
        setting.line(results),
        f"Policies of search-bits at {results['search_commit']}: "
        + ", ".join(f"{kind} `{name}` ({len(cases[kind])} seeds)" for kind, name in results["names"].items())
        + f"; {results['episodes']} episodes each.",
        "",
        f"| deviation | {' | '.join(f'{kind}, mean ± sd' for kind in cases)} | integers - floating point |",
        "|--:|--:|--:|--:|",
    ]
    for k, sigma in enumerate(results["sigmas"]):
        means = [x_RS[:, k].mean() for x_RS in cases.values()]
        cells = [
            f"{x_RS[:, k].mean():.0f} ± {x_RS[:, k].std(ddof=min(1, len(x_RS) - 1)):.0f}" for x_RS in cases.values()
        ]
        lines.append(f"| {sigma} | {' | '.join(cells)} | {means[1] - means[0]:+.0f} |")
    return "\n".join(lines)


def figure(results: dict) -> Figure:
    """Mean return over the deviation, with 95 % intervals over seeds."""
    drawn, (axes,) = figures.panels(1)
    for kind, rows in results["cases"].items():
        x_RS = np.array(rows)
        axes.plot(SIGMAS, x_RS.mean(0), marker="o", label=f"{kind} ({results['names'][kind]})")
        if len(x_RS) > 1:
            bounds = [interval(lambda x: float(x.mean()), x_R) for x_R in x_RS.T]
            axes.fill_between(SIGMAS, *zip(*bounds, strict=True), alpha=0.2)
    axes.set_xlabel("deviation of the noise on normalised observations")
    axes.set_ylabel("greedy return")
    axes.set_title(f"{results['environment']}, mean and 95 % interval over seeds")
    axes.legend(frameon=False)
    return drawn


if __name__ == "__main__":
    main()
