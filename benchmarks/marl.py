"""Several agents: beside BenchMARL, beside rollouts of TorchRL's and of a plain loop, and beside eQMARL's numbers.

    python benchmarks/marl.py                     simple_spread_v3, 120,000 steps, 5 seeds: 15 minutes of a core,
                                                  and 90 more with the peer
    python benchmarks/marl.py --task rate         steps per second of 16 copies of it, without learning: 5 minutes
    python benchmarks/marl.py --task coin-game    CoinGame-2, 150,000 steps, 5 seeds, 5 cases: 20 minutes of a core
    python benchmarks/marl.py --quick             a few steps; writes nothing unless -o is given

The peer (lib/benchmarl_peer.py) needs other versions than ours, so it may have its own interpreter: --peer PYTHON.
spread and rate run one process at a time, one thread, in turns, so that a busy machine slows all alike; coin-game as
many runs at a time as there are cores. Finished runs are kept, a second start goes on; one that fails is reported.
"""

import argparse
import importlib.util
import shutil
import sys

import torch
from lib import agents_page, agents_rate, runs, setting
from lib.agents import CASES, PEERS, PRESETS, Numbers, asked, numbers, outcome, ratios, sampled, trained, wanted
from rich.console import Console

from distqtrl.config.sources import preset, with_flags
from distqtrl.report.runs import Run

STEPS = {"spread": (120_000, 1_600), "rate": (200, 25), "coin-game": (150_000, 1_200)}  # usual, and with --quick


def main() -> None:
    parser = runs.parser(__doc__, dict.fromkeys(STEPS, 5))  # of rate: rounds
    parser.add_argument(
        "--steps", type=int, help="of a run (BenchMARL plays whole batches of 6,000); of a round's copies"
    )
    parser.add_argument("--peer", help="its Python, or none; default: this one, if it has BenchMARL")
    args = parser.parse_args()
    args.steps = args.steps or STEPS[args.task][args.quick]
    args.peer = args.peer or (sys.executable if importlib.util.find_spec("benchmarl") else "none")
    if args.peer != "none" and not shutil.which(args.peer):
        parser.error(f"--peer {args.peer}: there is no such program")
    measure, table = {
        "spread": (spread, agents_page.of_spread),
        "rate": (rate, agents_page.of_rate),
        "coin-game": (coin_game, agents_page.of_coins),
    }[args.task]
    results = measure(args)
    setting.save(args, f"marl/{args.task}", results, table(results), agents_page.figure)


def spread(args: argparse.Namespace) -> Numbers:
    """Trainings of ours and of the peer, in turns."""
    everything: dict[runs.Job, Run | str] = {}
    found: dict[str, list[Numbers | str]] = {}
    for number, seed in enumerate(runs.seeds(args)):
        for name in CASES["spread"]:
            job = wanted(args, name)[number]
            everything |= runs.done([job], args.runs)
            run = everything[job]
            found.setdefault(name, []).append(run if isinstance(run, str) else numbers(run) | {"sampled": sampled(run)})
        for name, words in PEERS.items() if args.peer != "none" else ():
            found.setdefault(name, []).append(trained(args, words, seed))
    results = outcome(args, everything, found)
    results["ratios"] = {name: ratios(found["circuit"], found[name]) for name in PEERS if name in found}
    return results


def coin_game(args: argparse.Namespace) -> Numbers:
    """Trainings through the circuit and of the controls, scored as eQMARL does."""
    names = ("circuit", "frozen_random") if args.quick else CASES["coin-game"]
    jobs = {name: wanted(args, name) for name in names}
    everything = runs.done([job for each in jobs.values() for job in each], args.runs)
    found: dict[str, list[Numbers | str]] = {}
    for name, each in jobs.items():
        got = [everything[job] for job in each]
        found[name] = [run if isinstance(run, str) else numbers(run, 2) for run in got]  # 2: the sum over both agents
    return outcome(args, everything, found)


def rate(args: argparse.Namespace) -> Numbers:
    """Rollouts of ours, of the peer's and of a plain loop, in turns."""
    torch.set_num_threads(1)
    cfg = with_flags(preset(PRESETS["rate"]), {"algorithm.rollout_steps": str(args.steps)})
    copies = cfg.environment.local_num
    contenders = {"distqtrl": agents_rate.timed(agents_rate.Ours(cfg), copies * args.steps)}
    if args.peer != "none":
        contenders["BenchMARL"] = lambda: asked(args, ("rate", "--frames", str(copies * args.steps)))
    contenders["plain loop"] = agents_rate.timed(agents_rate.Plain(copies, args.steps), copies * args.steps)
    found: dict[str, list[Numbers | str]] = {name: [] for name in contenders}
    for number in runs.seeds(args):
        for name, measure in contenders.items():
            got = measure()
            found[name].append(got if isinstance(got, str) else got | {"seed": number})
            Console(stderr=True).print(f"{name}, round {number}: {found[name][-1]}")
    results = outcome(args, {}, found)
    results["ratios"] = {name: ratios(found["distqtrl"], each) for name, each in found.items() if name != "distqtrl"}
    return results


if __name__ == "__main__":
    main()
