"""BenchMARL on mpe2's simple_spread_v3, for marl.py, which runs it in an interpreter of its own; prints one JSON line.

    PYTHON benchmarks/lib/benchmarl_peer.py train --algorithm mappo --frames 60000 --seed 0 --evaluate 11 12 13
    PYTHON benchmarks/lib/benchmarl_peer.py rate --frames 3200

Needs benchmarl==1.5.2, torchrl==0.11.1, tensordict==0.11.0, mpe2, and nothing of distqtrl. Experiment, algorithm,
networks, collector and buffers are BenchMARL's own, with the defaults of its yaml files (it has no settings tuned for
these environments). What differs: the environment comes from mpe2, as pettingzoo.mpe is gone; actions are discrete; its
copies have seeds of their own, where BenchMARL gives all of them the same one; nothing is logged or saved.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from benchmarl.algorithms import IppoConfig, MappoConfig
from benchmarl.environments.pettingzoo.common import PettingZooClass
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.experiment.callback import Callback
from benchmarl.models.mlp import MlpConfig
from mpe2 import simple_spread_v3
from tensordict import TensorDict
from torchrl.envs.libs.pettingzoo import PettingZooWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type

ALGORITHMS = {"mappo": MappoConfig, "ippo": IppoConfig}
WORLD = {"N": 3, "local_ratio": 0.5, "max_cycles": 25}
COPIES = 16
GROUP = "agent"  # TorchRL's name for agent_0, agent_1, ...


class SimpleSpread(PettingZooClass):
    """BenchMARL's PettingZoo task with mpe2's environment."""

    def get_env_fun(self, num_envs: int, continuous_actions: bool, seed: int, device: str) -> Callable[[], Any]:
        numbers = itertools.count(1_000_000 + 10_000 * seed)

        def make() -> PettingZooWrapper:
            env = simple_spread_v3.parallel_env(continuous_actions=continuous_actions, **WORLD)
            state, number = self.has_state(), next(numbers)
            return PettingZooWrapper(env, return_state=state, categorical_actions=True, seed=number, device=device)

        return make

    def has_render(self, env: Any) -> bool:
        return False


class Curve(Callback):
    """Frames and the mean return of the episodes that ended, of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[int] = []
        self.returns: list[float] = []

    def on_batch_collected(self, batch: TensorDict) -> None:
        self.frames.append(batch.numel() + (self.frames[-1] if self.frames else 0))
        self.returns.append(float(self.experiment.mean_return))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("train", "rate"))
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="mappo")
    parser.add_argument("--frames", type=int, required=True, help="steps of all copies, rounded up to whole batches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", type=int, nargs="+", default=[0], help="seeds of the last evaluation's episodes")
    parser.add_argument("--frames-per-batch", type=int)
    parser.add_argument("--minibatch-size", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--gamma", type=float)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = train(args, folder) if args.mode == "train" else rate(args, folder)
    packages = ("benchmarl", "torchrl", "tensordict", "torch", "mpe2", "pettingzoo", "numpy")
    print(json.dumps({**found, "versions": {name: version(name) for name in packages}}))


def experiment(args: argparse.Namespace, folder: str, frames: int, *callbacks: Callback) -> Experiment:
    """BenchMARL's defaults, and what the arguments change."""
    config = ExperimentConfig.get_from_yaml()
    config.prefer_continuous_actions, config.on_policy_n_envs_per_worker = False, COPIES
    config.max_n_frames, config.max_n_iters = frames, None
    config.evaluation, config.render, config.loggers, config.create_json = False, False, [], False
    config.save_folder = folder
    config.on_policy_collected_frames_per_batch = args.frames_per_batch or config.on_policy_collected_frames_per_batch
    config.on_policy_minibatch_size = args.minibatch_size or config.on_policy_minibatch_size
    config.on_policy_n_minibatch_iters = args.epochs or config.on_policy_n_minibatch_iters
    config.lr, config.gamma = args.lr or config.lr, args.gamma or config.gamma
    return Experiment(
        task=SimpleSpread("SIMPLE_SPREAD", WORLD),
        algorithm_config=ALGORITHMS[args.algorithm].get_from_yaml(),
        model_config=MlpConfig.get_from_yaml(),
        critic_model_config=MlpConfig.get_from_yaml(),
        seed=args.seed,
        config=config,
        callbacks=list(callbacks),
    )


def train(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """One training, and the returns of its last policy on given episodes."""
    curve = Curve()
    trained = experiment(args, folder, args.frames, curve)
    cpu_s = time.process_time()
    trained.run()
    cpu_s = time.process_time() - cpu_s
    critic = trained.losses[GROUP].critic_network_params.flatten_keys().values()
    return {
        "greedy": played(trained.policy, args.evaluate, ExplorationType.DETERMINISTIC),
        "sampled": played(trained.policy, args.evaluate, ExplorationType.RANDOM),
        "steps_per_s": curve.frames[-1] / trained.total_time,
        "steps_per_cpu_s": curve.frames[-1] / cpu_s,
        "env_steps": curve.frames,
        "returns": curve.returns,
        "parameters": [sum(x.numel() for x in trained.policy.parameters()), sum(x.numel() for x in critic)],
    }


@torch.no_grad()
def played(policy: Any, seeds: list[int], exploration: ExplorationType) -> float:
    """Mean over agents and episodes of the undiscounted return; all episodes side by side on mpe2 itself."""
    envs = [simple_spread_v3.parallel_env(continuous_actions=False, **WORLD) for _ in seeds]
    agents = envs[0].possible_agents
    observed = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    returns, shape = np.zeros(len(envs)), (len(envs), len(agents))
    torch.manual_seed(0)
    with set_exploration_type(exploration):
        while envs[0].agents:  # every episode has max_cycles steps
            obs = torch.tensor(np.array([[each[agent] for agent in agents] for each in observed]), dtype=torch.float32)
            seen = TensorDict({GROUP: TensorDict({"observation": obs}, batch_size=shape)}, batch_size=shape[:1])
            chosen = policy(seen).get((GROUP, "action")).tolist()
            for b, (env, actions) in enumerate(zip(envs, chosen, strict=True)):
                observed[b], rewards, *_ = env.step(dict(zip(agents, actions, strict=True)))
                returns[b] += np.mean(list(rewards.values()))
    return float(returns.mean())


def rate(args: argparse.Namespace, folder: str) -> dict[str, float]:
    """Steps per second of the experiment's collector, whose first batch is not timed."""
    args.frames_per_batch = args.frames_per_batch or args.frames
    batches = iter(experiment(args, folder, args.frames + args.frames_per_batch).collector)
    next(batches)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    frames = sum(batch.numel() for batch in batches)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {"steps_per_s": frames / wall_s, "steps_per_cpu_s": frames / cpu_s}


if __name__ == "__main__":
    main()
