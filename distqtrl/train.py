"""The loop: rollout, advantages, optimizer steps, agreement, records; the same program on every rank.

One update = one rollout of every environment of every rank, and the optimizer steps on it. Ranks decide
(stop, validate, save) from reduced numbers alone, so they always decide alike.
"""

import json
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distqtrl import checkpoint, demand, generator, off_policy, replica, roles, sampling, team, tensorfile
from distqtrl.algorithm.replay import Replay
from distqtrl.allreduce.communicator import Communicator, RankLost, Refused, agreed, allgather_bytes, check_equal
from distqtrl.checkpoint import State
from distqtrl.config import Config, UserError
from distqtrl.environment.rollout import bound, cut, summary
from distqtrl.environment.vector import Environments, Role, make
from distqtrl.learner import Learner
from distqtrl.policy import policy_file
from distqtrl.policy.distribution import Head
from distqtrl.policy.network import Architecture
from distqtrl.policy.policy_file import Policy
from distqtrl.record import Profile, Recorder, versions
from distqtrl.replica import DeviceLost, Generated, Replica, finite_sum
from distqtrl.soft_actor_critic import SoftActorCritic
from distqtrl.stopping import EXIT_CODES
from distqtrl.team import Team

SURVIVING = "needs Open MPI 5 and mpirun --with-ft ulfm"


@dataclass
class Counters:
    """Where a run stands; update is the next one to do. Steps and episodes are those of all ranks."""

    update: int = 0
    env_steps: int = 0
    validation_steps: int = 0
    episodes: int = 0
    train_s: float = 0.0
    cpu_s: float = 0.0  # mean over ranks of CPU seconds spent on anything but communication
    recent: list[float] = field(default_factory=list)  # mean returns of the last updates, train.smoothing of them
    acted: list[int] = field(default_factory=list)  # steps of every agent, where there are several
    longest_episode: int = 0  # in steps, of all ranks, episodes that have not ended included
    validation_return: float | None = None  # of the last update, where there was a validation


@dataclass
class Run:
    """One training run on this rank."""

    config: Config
    comm: Communicator
    team: Team
    environments: Environments
    replay: Replay | None  # of these environments, where the algorithm has one
    counters: Counters
    num_environments: int  # of all ranks
    restarted: list[int] = field(default_factory=list)  # environments whose state could not be replayed
    lost: list[int] = field(default_factory=list)  # ranks, by their numbers at the start
    setup_s: float = 0.0
    told: bool = False  # that validations cut episodes

    @property
    def learner(self) -> Replica:
        """Of this rank's first policy; with one agent there is no other."""
        return self.team.learners[0]

    @property
    def done(self) -> float:
        """The part of the budget that is spent; 1 or more ends the run."""
        t, c = self.config.train, self.counters
        return max(c.env_steps / t.steps if t.steps else 0.0, c.update / t.updates if t.updates else 0.0)

    @property
    def finished(self) -> bool:
        return self.done >= 1

    @property
    def reached(self) -> bool:
        """Whether a validation, or the smoothed return of training, reached its target."""
        c = self.counters
        smoothed = sum(c.recent) / len(c.recent) if c.recent else None
        pairs = ((self.config.evaluate.target, c.validation_return), (self.config.train.target, smoothed))
        return any(target is not None and value is not None and value >= target for target, value in pairs)


def prepare(config: Config, comm: Communicator, resume: Path | None = None) -> Run:
    """The run on this rank, ready to train; with ``resume``, where that run directory's last checkpoint left it.

    Writes nothing and does not communicate. Raises UserError for a configuration that cannot run and for a
    checkpoint that cannot be used.
    """
    began = time.perf_counter()
    _check_ranks(config, comm)
    demand.check_settings(config)
    torch.set_num_threads(config.train.threads)
    state = None if resume is None else checkpoint.load(resume, config, comm)
    every = np.arange(comm.size * config.environment.local_num) if state is None else state.environments["index_B"]
    own = np.array_split(every, comm.size)[comm.rank].tolist()
    run = _built(config, comm, own, len(every), state)
    run.setup_s = time.perf_counter() - began
    return run


def compare(comm: Communicator, run: Run) -> None:
    """Raise Refused on every rank unless all of them found the same environment."""
    for what, own in run.environments.facts().items():
        found = [text.decode() for text in allgather_bytes(comm, own.encode())]
        other = next((rank for rank, text in enumerate(found) if text != found[0]), None)
        if other is not None:
            raise Refused(
                f"{run.config.environment.id}: ranks found different {what}: rank 0 {found[0]}, rank {other} "
                f"{found[other]}: give every rank the same packages and files, and let nothing depend on the "
                "order of a set"
            )


def _check_ranks(config: Config, comm: Communicator) -> None:
    """Raise UserError unless this job's ranks can do what the configuration asks."""
    if len(config.qpu.per_rank) > comm.size:
        raise UserError(
            f"qpu.per_rank has {len(config.qpu.per_rank)} entries, this job has {comm.size} "
            f"rank{'s' if comm.size > 1 else ''}: remove entries or start more ranks"
        )
    num, batch = comm.size * config.environment.local_num, config.algorithm.batch_size
    if config.algorithm.name == "sac" and batch < num:
        raise UserError(
            f"algorithm.batch_size = {batch} gives some of {num} environments no sample: use {num} or more, or fewer "
            "ranks"
        )
    if config.allreduce.lost_rank == "shrink" and not comm.survives:
        raise UserError(f"allreduce.lost_rank = shrink {SURVIVING}, this is {comm.describe()['mpi']}: use abort")


def _built(config: Config, comm: Communicator, own: Sequence[int], num_environments: int, state: State | None) -> Run:
    """A run of the environments ``own`` on this rank, fresh or as state says."""
    world = make(config.environment)
    agents, found = world.agents, world.spaces
    world.close()
    played = roles.roles(config.agents, agents, found, config.environment.id)
    _check_policies(config, agents, len(played))
    demand.check(config, played, dict(zip(agents, found, strict=True)))
    environments = Environments(
        config.environment, own, config.train.seed, "episode", 0, played, config.agents.critic == "centralised"
    )
    fits = roles.fits(config, environments)
    a, replay = config.algorithm, None
    if a.name == "sac":
        capacity = max(a.replay // num_environments, a.rollout_steps)
        replay = Replay(len(own), capacity, fits[0][0].num_inputs, fits[0][1].num_outputs)
    players = _team(config, comm, played, fits, environments, num_environments)
    run = Run(config, comm, players, environments, replay, Counters(), num_environments)
    if state is not None:
        run.counters = Counters(**{f.name: state.counters[f.name] for f in fields(Counters)})
        try:
            _restore(run, state, own)
        except (AssertionError, LookupError, TypeError, ValueError, RuntimeError) as error:  # some are an environment's
            if not state.origin:
                raise
            cause = str(error).splitlines() or [type(error).__name__]
            raise UserError(
                f"{state.origin} does not fit this run ({cause[0]}): delete it, or start the run again"
            ) from None
    return run


def _restore(run: Run, state: State, own: Sequence[int]) -> None:
    """Put replicas, ledger, environments and replay where the state says; raises ValueError where it does not fit."""
    players, environments, replay = run.team, run.environments, run.replay
    for role, learner in zip(players.held, players.learners, strict=True):
        own_tensors = checkpoint.below(state.learner, f"policy{role}/")
        learner.load({name: torch.from_numpy(t) for name, t in own_tensors.items()})
    players.generated.set_ledger(state.ledger)
    run.restarted = environments.restore(state.environments)
    if replay is not None:
        rows = state.environments["index_B"].tolist()
        replay.restore(state.environments, [rows.index(index) for index in own])


def _check_policies(config: Config, agents: Sequence[str], num: int) -> None:
    """Raise UserError for what is made for one agent, or one policy, alone."""
    if config.algorithm.name == "sac" and len(agents) > 1:
        raise UserError(
            f"algorithm.name sac trains one agent, {config.environment.id} has {len(agents)}: use ppo or reinforce"
        )
    if config.adapter.base is not None and num > 1:
        raise UserError(
            f"adapter.base adapts one policy, agents.sharing {config.agents.sharing} makes {num}: use shared"
        )


def _team(
    config: Config,
    comm: Communicator,
    played: list[Role],
    fits: list[tuple[Architecture, Head]],
    environments: Environments,
    num_environments: int,
) -> Team:
    """The policies, and the learners of those that this rank holds."""
    held, ranks = list(range(len(played))), list(range(comm.size))
    if config.agents.placement == "spread":
        held, ranks = team.blocks(len(played), comm)
    among = comm if len(ranks) == comm.size else comm.among(ranks)
    parts = np.array_split(range(num_environments), comm.size)
    shared = sum(len(parts[rank]) for rank in ranks)
    if config.allreduce.aggregation == "average":
        shared = environments.num
    profile = Profile(config.qpu.replicas)
    generated: Generated | None = None
    if len(played) > 1:
        layers = [architecture.layers for architecture, _ in fits]
        generated = Generated(generator.several(config, layers, held, replica.shares(among)), profile)
    learners: list[Replica] = []
    for place, role in enumerate(held):
        args = (config, *fits[role], among, profile, shared * len(played[role]), role, generated, place)
        if config.algorithm.name == "sac":
            learners.append(SoftActorCritic(*args))
        else:
            learners.append(Learner(*args, num_states=roles.num_states(environments, played[role])))
    return Team(config, comm, profile, played, fits, held, learners)


def train(run: Run, directory: Path, pending: Sequence[signal.Signals] = ()) -> dict[str, Any]:
    """Train until the target, the budget or a pending signal; returns (and, unless stopped, writes) the result.

    The policy is written before anything that can fail: before its evaluation and before TensorBoard's last events.

    The run directory gets metrics, events, checkpoints, policy file and ``result.json``, which marks a run as
    complete. Raises Refused on every rank for divergence and for a directory that another job writes, DeviceLost for
    a device that failed (after a checkpoint of the last whole update), OSError on rank 0 for a full disk.
    """
    before: deque[State] = deque(maxlen=2)  # the present update's start and the last one's, to go back to
    recorder = None
    try:
        while True:
            try:
                if run.config.allreduce.lost_rank == "shrink":
                    before.append(_copy(_state(run)))
                if recorder is None:
                    recorder = agreed(run.comm, lambda: _recorder(run, directory))
                    clock = _Clock(run)
                    if run.lost:
                        recorder.say(_loss(run))
                if run.finished or run.reached:
                    return _conclude(run, directory, recorder)
                stop = _cycle(run, directory, recorder, clock, pending)
                if stop:
                    stopped = {"status": "stopped", "signal": stop.name, "exit_code": EXIT_CODES[stop]}
                    return {**stopped, **asdict(run.counters)}
            except RankLost:
                if recorder is not None:
                    recorder.close()
                _recover(run, before)
                recorder = None
    finally:
        if recorder is not None:
            recorder.close()


def _recorder(run: Run, directory: Path) -> Recorder:
    return Recorder(directory, run.comm.rank, run.counters.update, run.counters.env_steps)


def _loss(run: Run) -> str:
    return (
        f"lost rank {', '.join(map(str, run.lost))}: {run.comm.size} ranks and {run.num_environments} environments "
        f"go on from update {run.counters.update}"
    )


def _cycle(
    run: Run, directory: Path, recorder: Recorder, clock: "_Clock", pending: Sequence[signal.Signals]
) -> signal.Signals | None:
    """One update with everything around it; returns the signal to stop on."""
    config, profile = run.config, run.team.profile
    with _saved_when_a_device_fails(run, directory):
        metrics, stop = _update(run, pending)
        _synchronise(run)
        run.counters.validation_return = None
        if _due(run, config.evaluate.every):
            metrics |= _validation(run, recorder)
    elapsed_s = clock.lap_s()
    run.counters.train_s += elapsed_s
    metrics |= {"wall_s": run.counters.train_s, "steps_per_s": metrics.pop("new_steps") / elapsed_s}
    metrics["profile_s"] = profile.take()
    with profile("write"):
        recorder.write(metrics, run.done)
        if stop or run.reached or _due(run, config.train.checkpoint_every):
            recorder.sync()
            checkpoint.save(directory, config, run.comm, _state(run))
    return stop


def _recover(run: Run, before: Sequence[State]) -> None:
    """Go on without the ranks that are lost: back to the newest update that the others all have seen the start of.

    No rank is more than one reduction ahead of another, so that start is among the last two of every rank.
    """
    while True:
        run.lost = sorted([*run.lost, *run.comm.shrink()])
        try:
            own = np.array([before[-1].counters["update"], run.environments.num])
            update_R, num_R = run.comm.allgather(own).T
            break
        except RankLost:
            continue
    state = next(state for state in before if state.counters["update"] == update_R.min())
    again = _built(run.config, run.comm, run.environments.indices, int(num_R.sum()), state)
    run.environments.close()
    run.team, run.environments, run.counters = again.team, again.environments, again.counters
    run.replay = again.replay
    run.num_environments, run.restarted = again.num_environments, again.restarted


class _Clock:
    """Seconds of training since the last lap, writing included."""

    def __init__(self, run: Run) -> None:
        self._last = time.perf_counter()
        run.team.profile.busy_s()  # what came before is setup

    def lap_s(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last


@contextmanager
def _saved_when_a_device_fails(run: Run, directory: Path) -> Iterator[None]:
    """When a device that is not our own fails inside, what was before becomes a checkpoint."""
    if not run.learner.external:
        yield
        return
    before = _copy(_state(run))
    try:
        yield
    except DeviceLost as error:
        checkpoint.save(directory, run.config, run.comm, before)
        raise DeviceLost(
            f"{error}; {before.counters['update']} updates are saved, go on with: distqtrl train --resume {directory} "
            f"on {run.comm.size} rank{'s' if run.comm.size > 1 else ''}"
        ) from None


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
        circuits = num_steps * (1 + qpu.circuits_per_gradient) * run.team.num_circuits
        shots = circuits * (qpu.settings.shots or 0)
    updates, steps = run.config.train.updates, run.config.train.steps
    if steps is not None:
        by_steps = -(-steps // (run.num_environments * a.rollout_steps))
        updates = min(by_steps, updates or by_steps) if a.rollout == "steps" else None
    used, left = run.team.generated.ledger(), max(0, (updates or 0) - max(run.counters.update, silent))
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


def _update(run: Run, pending: Sequence[signal.Signals]) -> tuple[dict[str, Any], signal.Signals | None]:
    """One rollout and its optimizer steps; returns metrics, and the signal on which all ranks stop."""
    config, profile, counters, received = run.config, run.team.profile, run.counters, run.comm.received
    for learner in run.team.learners:
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
        learned = sampling.update(run.team, run.environments, counters.update, totals)
    episodes, return_sum, length_sum = (float(x) for x in total["episodes"])
    counters.update += 1
    counters.env_steps += int(total["steps"][0])
    counters.episodes += int(episodes)
    counters.cpu_s += float(total["busy"][0]) / run.comm.size
    if episodes:
        counters.recent = [*counters.recent, return_sum / episodes][-config.train.smoothing :]
    used = run.team.generated.ledger()
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


def _synchronise(run: Run) -> None:
    """Average the parameters when they are due (always before they are looked at), or compare the replicas."""
    a, update = run.config.allreduce, run.counters.update
    if a.aggregation == "average":
        if update % a.average_every == 0 or _due(run, run.config.evaluate.every) or run.finished:
            for learner in run.team.learners:
                learner.average()
    elif update % a.check_every == 0 or run.finished:
        remedy = "these results cannot be trusted; resume the run from its last checkpoint"
        with run.team.profile("allreduce"):
            check_equal(run.learner.comm, run.team.fingerprint(), f"parameters after update {update}", remedy)


def _due(run: Run, every: int | None) -> bool:
    """Whether something done every so many updates, and at the end of the budget, is due."""
    return every is not None and (run.counters.update % every == 0 or run.finished)


def _validation(run: Run, recorder: Recorder) -> dict[str, Any]:
    """Metrics of greedy episodes."""
    num, counters = run.config.evaluate.validation_episodes, run.counters
    policies = _policies(run)
    with run.team.profile("evaluate"):
        found = sampling.greedy_episodes(run.config, run.comm, policies, "validation", counters.update, num)
    counters.validation_steps += found.steps
    counters.validation_return = float(found.returns.mean())
    if found.cut and not run.told:
        run.told = True
        recorder.say(f"validation: {cut(found.cut, num, policies[0].origin['max_steps'])}")
    return {"validation_return": counters.validation_return, **({"validation_cut": found.cut} if found.cut else {})}


def _policies(run: Run) -> list[Policy]:
    """All policies as they are deployed; their origin says where their evaluations cut an episode without an end."""
    policies, config = run.team.policies(run.counters.env_steps), run.config
    most = bound(run.environments, config.evaluate.max_steps, run.counters.longest_episode)
    if most is not None:
        for policy in policies:
            policy.origin = {**policy.origin, "max_steps": most}
    return policies


def _state(run: Run) -> State:
    """What a checkpoint holds of this rank; tensors may change with the run."""
    learner = {
        f"policy{role}/{name}": t.numpy()
        for role, own in zip(run.team.held, run.team.learners, strict=True)
        for name, t in own.tensors().items()
    }
    replay = {} if run.replay is None else run.replay.state()
    return State(asdict(run.counters), learner, run.environments.state() | replay, run.team.generated.ledger())


def _copy(state: State) -> State:
    return State(state.counters, {n: t.copy() for n, t in state.learner.items()}, state.environments, state.ledger)


def _conclude(run: Run, directory: Path, recorder: Recorder) -> dict[str, Any]:
    """Write the policies, then evaluate them, and mark the run as complete."""
    policies, num = _policies(run), run.config.evaluate.episodes
    if run.comm.rank == 0:
        for file, policy in zip(policy_file.names(run.team.names), policies, strict=True):
            policy.save(directory / file)
    recorder.end()
    found = sampling.greedy_episodes(run.config, run.comm, policies, "evaluation", 0, num)
    agents = run.environments.agents
    result = {
        "status": "complete",
        "target_reached": run.reached,
        "evaluation": {**summary(found.returns), "cut": found.cut, "max_steps": policies[0].origin.get("max_steps")},
        **({"agents": dict(zip(agents, found.returns_GE.mean(1).tolist(), strict=True))} if len(agents) > 1 else {}),
        "ranks": run.comm.size,
        "lost_ranks": run.lost,
        "qpu": None if run.learner.generator.qpu is None else run.learner.generator.qpu.facts(),
        "setup_s": run.setup_s,
        "versions": versions(),
        **asdict(run.counters),
    }
    if run.comm.rank == 0:
        tensorfile.replace(directory / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    return result
