"""One update of the loop, and the line of metrics that it writes."""

import signal
from collections.abc import Sequence
from typing import Any

import numpy as np

from distqtrl.allreduce.agreement import Refused
from distqtrl.training.gradient import finite_sum
from distqtrl.training.policy_gradient import update as sampling
from distqtrl.training.run import Run
from distqtrl.training.soft_actor_critic import update as off_policy
from distqtrl.training.soft_actor_critic.learner import SoftActorCritic
from distqtrl.training.stopping import EXIT_CODES


def prediction(run: Run) -> dict[str, Any]:
    """What the QPUs of all ranks will be asked for, in one update and by the end of the budget.

    Equals the metrics exactly. Whole episodes have no length that is known before: with a budget in steps, updates
    (and totals) are None then.
    """
    a, qpu = run.config.algorithm, run.learner.generator.qpu
    num_steps, silent = (a.epochs * a.minibatches if a.name == "ppo" else 1), 0  # updates before anything is learned
    if a.name == "sac":
        num_steps = a.rollout_steps * a.gradient_steps // a.policy_every * a.policy_every
        silent = -(-a.learning_starts // (run.num_environments * a.rollout_steps))
    circuits = shots = 0
    if qpu is not None and run.config.generator.source == "circuit":
        circuits = num_steps * (1 + qpu.circuits_per_gradient) * run.policies.num_circuits
        shots = circuits * (qpu.settings.shots or 0)
    updates, steps = run.config.train.updates, run.config.train.steps
    if steps is not None:
        by_steps = -(-steps // (run.num_environments * a.rollout_steps))
        updates = min(by_steps, updates or by_steps) if a.rollout == "steps" else None
    used, left = run.policies.generated.ledger(), max(0, (updates or 0) - max(run.counters.update, silent))
    return {
        "updates": updates,
        "update": _over_ranks(run, circuits, shots),
        "run": _over_ranks(run, used[0] + left * circuits, used[2] + left * shots) if updates else None,
    }


def _over_ranks(run: Run, circuits: int, shots: int) -> dict[str, int | float]:
    """Circuits and shots of all ranks' QPUs; and the time they take side by side, at a stated time per shot."""
    seconds = shots * run.config.qpu.of_rank(run.comm.rank).shot_us * 1e-6
    circuits_R, shots_R, seconds_R = run.comm.allgather(np.array([circuits, shots, seconds], dtype=np.float64)).T
    return {"circuits": int(circuits_R.sum()), "shots": int(shots_R.sum()), "qpu_s": float(seconds_R.max())}


def update(run: Run, pending: Sequence[signal.Signals]) -> tuple[dict[str, Any], signal.Signals | None]:
    """One rollout and its optimizer steps; returns metrics, and the signal on which all ranks stop."""
    config, profile, counters, received = run.config, run.policies.profile, run.counters, run.comm.received
    for learner in run.policies.learners:
        learner.set_progress(run.done)
    total: dict[str, np.ndarray] = {}
    longest = 0

    def totals(parts: dict[str, Any]) -> dict[str, np.ndarray]:
        """The parts, and what the loop asks for, summed over ranks in one reduction."""
        nonlocal longest
        finished, run.environments.finished = run.environments.finished, []
        of_agents, run.environments.agent_returns = run.environments.agent_returns, []
        longest = max([n for _, n in finished] + [len(actions) for actions in run.environments.actions])
        busy_s = profile.busy_s()
        with profile("allreduce"):
            own = {
                "agents": np.sum(of_agents, axis=0) if of_agents else np.zeros(run.environments.num_agents),
                "episodes": [len(finished), sum(r for r, _ in finished), sum(n for _, n in finished)],
                "signals": [pending.count(s) for s in EXIT_CODES],
                "busy": [busy_s],
            }
            total.update(_summed(run, parts | own, f"rollout of update {counters.update}"))
        return total

    if run.replay is not None:
        assert isinstance(run.learner, SoftActorCritic)
        learned = off_policy.update(
            run.learner, run.environments, run.replay, counters.update, counters.env_steps, totals
        )
    else:
        learned = sampling.update(run.policies, run.environments, counters.update, totals)
    episodes, return_sum, length_sum = (float(x) for x in total["episodes"])
    counters.update += 1
    counters.env_steps += int(total["steps"][0])
    counters.episodes += int(episodes)
    counters.cpu_s += float(total["busy"][0]) / run.comm.size
    if episodes:
        counters.recent = [*counters.recent, return_sum / episodes][-config.train.smoothing :]
    used = run.policies.generated.ledger()
    with profile("allreduce"):
        qpu = _over_ranks(run, used[0], used[2])
        wait_R, longest_R = run.comm.allgather(np.array([profile.seconds("allreduce"), longest])).T
    counters.longest_episode = max(counters.longest_episode, int(longest_R.max()))
    metrics = {
        "update": counters.update - 1,
        "ranks": run.comm.size,
        "env_steps": counters.env_steps,
        "episodes": counters.episodes,
        "return_mean": return_sum / episodes if episodes else None,
        "return_smoothed": sum(counters.recent) / len(counters.recent) if counters.recent else None,
        "length_mean": length_sum / episodes if episodes else None,
        **_of_agents(run, total),
        **learned,
        **_noise(run),
        "learning_rate": run.learner.optimizer.rates[0],
        **qpu,
        "cpu_s": counters.cpu_s,
        "wait_s": [round(wait_s, 6) for wait_s in wait_R.tolist()],
        "received_bytes": run.comm.received - received,
        **({"lost_ranks": run.lost} if run.lost else {}),
        "new_steps": int(total["steps"][0]),
    }
    stops = [s for s, count in zip(EXIT_CODES, total["signals"], strict=True) if count]
    return metrics, stops[0] if stops else None


def _of_agents(run: Run, total: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean returns of every agent, where there are several.

    Raises Refused when an episode has ended and an agent has never acted.
    """
    env, episodes = run.environments, run.counters.episodes
    if env.num_agents == 1:
        return {}
    acted_G = np.array(run.counters.acted or [0] * env.num_agents) + total["acted"].astype(np.int64)
    run.counters.acted = acted_G.tolist()
    if episodes and not acted_G.all():
        agent = env.agents[int(np.flatnonzero(acted_G == 0)[0])]
        raise Refused(
            f"{run.config.environment.id}: agent {agent} has not acted in {episodes} episodes: leave it out of "
            "possible_agents, there is nothing to learn for it"
        )
    ended = total["episodes"][0]
    returns = {agent: float(x / ended) for agent, x in zip(env.agents, total["agents"], strict=True)} if ended else None
    return {"agent_returns": returns}


def _noise(run: Run) -> dict[str, float]:
    """What the acting policy's noise was, where there is any."""
    deviation, reached = run.learner.noise
    return {} if run.config.rollout.noise == "none" else {"noise": deviation, "noisy_layers": reached}


def _summed(run: Run, parts: dict[str, Any], what: str) -> dict[str, np.ndarray]:
    """The parts summed over ranks in one reduction."""
    flat = np.concatenate([np.asarray(part, dtype=np.float64) for part in parts.values()])
    total = finite_sum(run.comm, run.config.allreduce.reduction, flat, what)
    ends = np.cumsum([len(part) for part in parts.values()])
    return dict(zip(parts, np.split(total, ends[:-1]), strict=True))
