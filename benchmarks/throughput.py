"""Training beside bare stepping of the same environment, and beside stable-baselines3: steps per second, on one core.

    python benchmarks/throughput.py            about 10 minutes; writes results/throughput/throughput.*
    python benchmarks/throughput.py --quick    a few updates; writes nothing unless -o is given

In every turn each of the environments is stepped bare, by uniformly random actions that were drawn before, then our
preset trains, then the peer; all on the same core, one after the other. A ratio is of one turn, and the median over
turns counts, so that a busy machine slows both sides of it alike. Rates are per second of the clock and per second of
the core's own time, which counts neither what else the machine does meanwhile nor waits for the disk.

Training is everything after set-up: acting, learning, what is written. Bare steps hold what Gymnasium's own wrappers
do, and resets. Of SAC every step after the first 100 is followed by a gradient step. The peer has our preset's
settings (of SAC: we have its defaults).

What a start costs is the CPU time of a process until its first update is written: nothing is loaded before, and machine
code of kernels is in its cache.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import processes, runs, setting

from distqtrl.config.run import Config
from distqtrl.config.sources import preset, with_flags

PEER = "stable-baselines3"
Rates = tuple[float, float]  # steps per second of the clock, and of a core
SAC = runs.SAC_OF_PEER | {"algorithm.learning_starts": "100"}
MANY = {"environment.local_num": "64", "algorithm.batch_size": "1024"}  # a gradient step per step of all
ONLY_TRAINING = ("--evaluate.every", "none", "--evaluate.target", "none", "--evaluate.episodes", "1")


@dataclass(frozen=True)
class Case:
    """A preset with flags; goals are least ratios to bare stepping, and to the peer where there is one."""

    preset: str
    budget: int  # steps, or updates where the preset counts these
    flags: tuple[str, ...] = ()
    peer: str = ""  # what of stable-baselines3
    bare_goal: float | None = None
    peer_goal: float | None = None

    @property
    def config(self) -> Config:
        return with_flags(preset(self.preset), runs.fields(self.flags))


CASES = {
    "cartpole": Case("cartpole", 60_000, peer="PPO", bare_goal=0.5, peer_goal=3.0),
    "cartpole, direct": Case(
        "cartpole", 60_000, runs.words({"generator.source": "direct", "generator.whiten": "none"}), peer="PPO"
    ),
    "cartpole-gnn": Case("cartpole-gnn", 60_000),
    "hopper": Case("hopper", 20_000, peer="PPO", bare_goal=0.75, peer_goal=2.0),
    "simple-spread": Case("simple-spread", 8000),
    "qtrl-cartpole": Case("qtrl-cartpole", 300),
    "hopper-sac": Case("hopper-sac", 1000, runs.words(SAC), peer="SAC", peer_goal=1.4),
    "hopper-sac, 64 environments": Case("hopper-sac", 12_800, runs.words(SAC | MANY)),
}
QUICK = {"cartpole": 480, "hopper": 2048, "qtrl-cartpole": 3, "hopper-sac": 200}
STARTED = ("cartpole", "hopper")
START_GOAL_S = 2.5


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all")
    args = parser.parse_args()
    wanted = args.cases or list(QUICK if args.quick else CASES)
    turns = 1 if args.quick else args.turns
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cases: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    for number in range(turns):
        for name in wanted:
            budget = QUICK[name] if args.quick else CASES[name].budget
            cases[name].append(turn(CASES[name], budget, number))
            print(name, cases[name][-1], file=sys.stderr)
    results = {
        **setting.facts("torch", "numba", "numpy", "gymnasium", "mujoco", "pettingzoo", "mpe2", PEER),
        "turns": turns,
        "cases": {name: {"turns": found, **summary(found)} for name, found in cases.items()},
        "starts": {name: started(name) for name in STARTED if name in wanted},
    }
    setting.save(args, "throughput/throughput", results, table(results))


def turn(case: Case, budget: int, seed: int) -> dict[str, float]:
    """Steps per second of each, per second of a core, and where our time went, in shares of it."""
    found = {**named("bare", apart(bare, case.config, seed)), **ours(case, budget, seed)}
    if case.peer:
        found |= named("peer", apart(PEERS[case.peer], case.config, budget, seed))
    return found


def named(name: str, rates: Rates) -> dict[str, float]:
    return {name: rates[0], f"{name}, core": rates[1]}


class Watch:
    """Seconds since it was made: of the clock, and of this process on a core."""

    def __init__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def rates(self, steps: int) -> Rates:
        """Steps per second of either."""
        return steps / (time.perf_counter() - self.began[0]), steps / (time.process_time() - self.began[1])


def apart(action: Callable[..., Rates], *given: Any) -> Rates:
    """action in a fork of this process, which has loaded everything."""
    import stable_baselines3  # noqa: F401 (once, and not in every fork)

    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(action, *given).result()


def bare(config: Config, seed: int, seconds: float = 1.0) -> Rates:
    """Steps per second of as many environments as the preset has on one rank, one after the other."""
    e = config.environment
    step = several(config, seed) if "/" in e.id else single(config, seed)
    step()
    watch, steps = Watch(), 0
    while time.perf_counter() - watch.began[0] < seconds:
        for _ in range(100):
            step()
        steps += 100 * e.local_num
    return watch.rates(steps)


def single(config: Config, seed: int) -> Callable[[], None]:
    """What steps every copy of a Gymnasium environment."""
    import gymnasium

    e, number = config.environment, iter(range(1 << 60))
    made = {"max_episode_steps": e.max_episode_steps, "disable_env_checker": True, **e.kwargs}
    envs = [gymnasium.make(e.id, **made) for _ in range(e.local_num)]
    envs[0].action_space.seed(seed)
    actions = [envs[0].action_space.sample() for _ in range(1024)]
    for b, env in enumerate(envs):
        env.reset(seed=seed + b)

    def step() -> None:
        for env in envs:
            _, _, terminated, truncated, _ = env.step(actions[next(number) % 1024])
            if terminated or truncated:
                env.reset()

    return step


def several(config: Config, seed: int) -> Callable[[], None]:
    """What steps every copy of a PettingZoo environment, all its agents at once."""
    from distqtrl.environment.parallel import Parallel

    e, number = config.environment, iter(range(1 << 60))
    envs = [Parallel(e).env for _ in range(e.local_num)]
    for b, env in enumerate(envs):
        env.reset(seed=seed + b)
    actions = [{agent: envs[0].action_space(agent).sample() for agent in envs[0].agents} for _ in range(256)]

    def step() -> None:
        for env in envs:
            env.step(actions[next(number) % 256])
            if not env.agents:
                env.reset()

    return step


def ours(case: Case, budget: int, seed: int) -> dict[str, float]:
    """Our training, and the seconds of it by phase."""
    unit = "steps" if case.config.train.steps else "updates"
    job = runs.Job(case.preset, seed, 1, (f"--train.{unit}", str(budget), *ONLY_TRAINING, *case.flags))
    with tempfile.TemporaryDirectory() as folder:
        run = runs.done([job], Path(folder), cores=1)[job]
    if isinstance(run, str):
        sys.exit(f"{job.name}: {run}")
    whole_s = run.result["train_s"]
    shares = {f"share of {phase}": seconds / whole_s for phase, seconds in run.profile_s.items() if seconds}
    core_s = run.result["cpu_s"] + run.profile_s.get("allreduce", 0.0)  # which leaves out communication
    steps = run.result["env_steps"]
    return {**named("ours", (steps / whole_s, steps / core_s)), **shares}


def ppo(config: Config, budget: int, seed: int) -> Rates:
    """Steps per second of the peer's PPO, with the networks and settings of ours."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    a, p, e = config.algorithm, config.policy, config.environment
    envs: Any = make_vec_env(e.id, e.local_num, seed=seed)
    if p.normalize_observations:
        envs = VecNormalize(envs, norm_reward=False)
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[p.activation]
    net = {"pi": list(p.hidden), "vf": list(a.value_hidden)}
    model = PPO(
        "MlpPolicy",
        envs,
        policy_kwargs={"net_arch": net, "activation_fn": activation},
        n_steps=a.rollout_steps,
        batch_size=e.local_num * a.rollout_steps // a.minibatches,
        n_epochs=a.epochs,
        gamma=a.gamma,
        gae_lambda=a.gae_lambda,
        seed=seed,
        device="cpu",
    )
    watch = Watch()
    model.learn(budget)
    return watch.rates(model.num_timesteps)


def sac(config: Config, budget: int, seed: int) -> Rates:
    """Steps per second of the peer's SAC with its defaults."""
    import gymnasium
    import torch
    from stable_baselines3 import SAC

    torch.set_num_threads(1)
    starts = config.algorithm.learning_starts
    model = SAC("MlpPolicy", gymnasium.make(config.environment.id), learning_starts=starts, seed=seed, device="cpu")
    watch = Watch()
    model.learn(budget)
    return watch.rates(budget)


PEERS = {"PPO": ppo, "SAC": sac}


def started(name: str) -> dict[str, float]:
    """Median seconds, of cores and of the clock, from the start of a process until it has written its first update."""
    found = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "distqtrl", "train", name, "--train.directory", folder, *ONLY_TRAINING],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                if not processes.until(lambda: _written(process, folder), 300):  # noqa: B023
                    sys.exit(f"a start of {name} failed")
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                core_s = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # in user and in kernel mode
                found.append((core_s, time.perf_counter() - began))
            finally:
                process.kill()
                process.wait()
    core_s, wall_s = (statistics.median(column) for column in zip(*found, strict=True))
    return {"core_s": core_s, "wall_s": wall_s}


def _written(process: subprocess.Popen, folder: str) -> bool:
    if process.poll() is not None:
        sys.exit(f"a start in {folder} ended by itself")
    return any(path.stat().st_size for path in Path(folder).glob("*/metrics.jsonl"))


def summary(found: list[dict[str, float]]) -> dict[str, float]:
    """Median rates, shares, and ratios turn by turn."""
    out = {f"median {name}": statistics.median(turn.get(name, 0.0) for turn in found) for name in found[0]}
    for other, of in ((other, of) for other in ("bare", "peer") for of in ("", ", core")):
        if other in found[0]:
            out[f"ours / {other}{of}"] = statistics.median(turn[f"ours{of}"] / turn[f"{other}{of}"] for turn in found)
    return out


def table(results: dict) -> str:
    """The results as Markdown."""
    lines = [
        "# Training beside bare stepping of the same environment",
        "",
        setting.line(results),
        f"One core; medians of {results['turns']} turns, ratios taken turn by turn.",
        "",
        "Rates are environment steps per second of the clock; ratios are of these, and of the core's own time.",
        "",
        f"| preset | bare | training | training / bare (goal) | core | {PEER} | ours / its (goal) | core |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in results["cases"].items():
        case = CASES[name]
        theirs = ["", "", ""]
        if case.peer:
            ratio = f"{row['ours / peer']:.2f}{_goal(case.peer_goal, '{:.1f}')}"
            theirs = [f"{case.peer} {row['median peer']:,.0f}", ratio, f"{row['ours / peer, core']:.2f}"]
        share = f"{row['ours / bare']:.0%}{_goal(case.bare_goal, '{:.0%}')}"
        core = f"{row['ours / bare, core']:.0%}"
        cells = [name, f"{row['median bare']:,.0f}", f"{row['median ours']:,.0f}", share, core, *theirs]
        lines.append(f"| {' | '.join(cells)} |")
    phases = sorted({key for row in results["cases"].values() for key in row if key.startswith("median share of ")})
    names = [phase.removeprefix("median share of ") for phase in phases]
    lines += ["", "Where the time of training goes:", "", f"| preset | {' | '.join(names)} | all else |"]
    lines.append(f"|---|{'--:|' * (len(names) + 1)}")
    for name, row in results["cases"].items():
        shares = [row.get(phase, 0.0) for phase in phases]
        lines.append(f"| {name} | {' | '.join(f'{x:.0%}' for x in (*shares, max(0.0, 1 - sum(shares))))} |")
    lines += ["", f"| from start to first update | seconds of a core (goal {START_GOAL_S}) | of the clock |"]
    lines.append("|---|--:|--:|")
    for name, row in results["starts"].items():
        lines.append(f"| {name} | {row['core_s']:.2f} | {row['wall_s']:.2f} |")
    return "\n".join(lines)


def _goal(goal: float | None, text: str) -> str:
    return "" if goal is None else f" ({text.format(goal)})"


if __name__ == "__main__":
    main()
