"""One update of the loop, and the line of metrics that it writes."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from distqtrl.allreduce.agreement import Refused
from distqtrl.config.run import Config
from distqtrl.generator.diagnostics import diagnose
from distqtrl.generator.generator import Generator
from distqtrl.training import algorithms
from distqtrl.training.run import Run
from distqtrl.training.stopping import EXIT_CODES
from distqtrl.training.sums import RolloutSums


def prediction(run: Run) -> dict[str, Any]:
    """What the QPUs of all ranks will be asked for, in one update and by the end of the budget.

    Equals the metrics, unless updates end early (``algorithm.target_kl``) or a minibatch is empty. Whole episodes have
    no length that is known before: with a budget in steps, updates (and totals) are None then.
    """
    asked = demanded(run.config, run.learner.generator, run.policies.num_circuits, run.num_environments)
    circuits, shots, updates = asked.circuits, asked.shots, asked.updates
    used, left = run.policies.generated.ledger(), max(0, (updates or 0) - max(run.counters.update, asked.silent))
    return {
        "updates": updates,
        "update": _over_ranks(run, circuits, shots),
        "run": _over_ranks(run, used[0] + left * circuits, used[2] + left * shots) if updates else None,
    }


class Demanded(NamedTuple):
    """Circuits and shots of one rank's QPU in an update, updates in the budget (if known), and those without a step."""

    circuits: int
    shots: int
    updates: int | None
    silent: int


def demanded(config: Config, generator: Generator, num_circuits: int, num_environments: int) -> Demanded:
    """What a rank asks its QPU for, with so many circuits (policies) here and environments on all ranks."""
    num_steps, silent = algorithms.chosen(config).learner.steps_per_update(config, num_environments)
    circuits = shots = 0
    if generator.measures and generator.qpu is not None:
        circuits = num_steps * (1 + generator.qpu.circuits_per_gradient) * num_circuits
        shots = circuits * (generator.qpu.settings.shots or 0)
    updates, steps = config.train.updates, config.train.steps
    if steps is not None:
        by_steps = -(-steps // (num_environments * config.rollout_steps))
        updates = min(by_steps, updates or by_steps) if config.algorithm.rollout == "steps" else None
    return Demanded(circuits, shots, updates, silent)


def _over_ranks(run: Run, circuits: int, shots: int) -> dict[str, int | float]:
    """Circuits and shots of all ranks' QPUs; and the time they take side by side, at a stated time per shot."""
    qpu = run.learner.generator.qpu
    seconds = 0.0 if qpu is None else shots * qpu.shot_us * 1e-6
    circuits_R, shots_R, seconds_R = run.comm.allgather(np.array([circuits, shots, seconds], dtype=np.float64)).T
    return {"circuits": int(circuits_R.sum()), "shots": int(shots_R.sum()), "qpu_s": float(seconds_R.max())}


class Updated(NamedTuple):
    """Metrics of an update; the signal on which all ranks stop; and whether rank 0 finds a checkpoint overdue."""

    metrics: dict[str, Any]
    stop: signal.Signals | None
    late: bool


def update(run: Run, pending: Sequence[signal.Signals], late: Callable[[], bool] = lambda: False) -> Updated:
    """One rollout and its optimizer steps; late() is asked at their end."""
    counters, received = run.counters, run.comm.received
    start = {} if counters.update else of_generator(run)
    for learner in run.policies.learners:
        learner.set_progress(run.done, counters.update)
    total, learned = algorithms.chosen(run.config).update(run, pending)
    episodes, steps = float(total.episodes), int(total.steps)
    counters.update += 1
    counters.env_steps += steps
    counters.episodes += int(episodes)
    counters.cpu_s += float(total.busy_s) / run.comm.size
    if episodes:
        counters.recent = [*counters.recent, float(total.returns) / episodes][-run.config.train.smoothing :]
    used, profile = run.policies.generated.ledger(), run.policies.profile
    with profile("allreduce"):
        qpu = _over_ranks(run, used[0], used[2])
        own = np.array([profile.seconds("allreduce"), counters.longest_episode, late()])
        wait_R, longest_R, late_R = run.comm.allgather(own).T
    counters.longest_episode = int(longest_R.max())
    metrics = {
        "update": counters.update - 1,
        "ranks": run.comm.size,
        "env_steps": counters.env_steps,
        "episodes": counters.episodes,
        "return_mean": float(total.returns) / episodes if episodes else None,
        "return_smoothed": sum(counters.recent) / len(counters.recent) if counters.recent else None,
        "length_mean": float(total.lengths) / episodes if episodes else None,
        **_of_agents(run, total),
        **learned,
        **start,
        **_noise(run),
        "learning_rate": run.learner.optimizer.rates[0],
        **qpu,
        "cpu_s": counters.cpu_s,
        "wait_s": [round(wait_s, 6) for wait_s in wait_R.tolist()],
        "received_bytes": run.comm.received - received,
        **({"lost_ranks": run.lost} if run.lost else {}),
    }
    stops = [s for s, count in zip(EXIT_CODES, total.signals, strict=True) if count]
    return Updated(metrics, stops[0] if stops else None, bool(late_R[0]))


def of_generator(run: Run) -> dict[str, Any]:
    """What moves the weights at the start of a run: of the first policy of rank 0, which alone writes metrics."""
    if run.comm.rank:
        return {}
    with run.policies.profile("generate"):
        generator = run.learner.generator
        trained = generator.counts()["total"]
        facts = asdict(diagnose(generator))
    return {"trained": trained, "compression": round(generator.num_weights / trained, 3), **facts}


def _of_agents(run: Run, total: RolloutSums) -> dict[str, Any]:
    """Mean returns of every agent, where there are several.

    Raises Refused when an episode has ended and an agent has never acted.
    """
    env, episodes = run.environments, run.counters.episodes
    if env.num_agents == 1:
        return {}
    acted_G = np.array(run.counters.acted or [0] * env.num_agents) + total.acted_G.astype(np.int64)
    run.counters.acted = acted_G.tolist()
    if episodes and not acted_G.all():
        agent = env.agents[int(np.flatnonzero(acted_G == 0)[0])]
        raise Refused(
            f"{run.config.environment.id}: agent {agent} has not acted in {episodes} episodes: leave it out of "
            "possible_agents, it has no samples"
        )
    ended = float(total.episodes)
    returns = {agent: float(x / ended) for agent, x in zip(env.agents, total.returns_G, strict=True)} if ended else None
    return {"agent_returns": returns}


def _noise(run: Run) -> dict[str, float]:
    """What the acting policy's noise was, where there is any."""
    deviation, reached = run.learner.noise
    return {} if run.config.rollout.noise == "none" else {"noise": deviation, "noisy_layers": reached}
