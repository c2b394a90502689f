"""The loop: rollout, advantages, optimizer steps, agreement, records; the same program on every rank.

One update = one rollout of every environment of every rank, and the optimizer steps on it. Ranks decide
(stop, validate, save) from reduced numbers alone, so they always decide alike.
"""

import copy
import json
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl.allreduce.agreement import agreed, check_equal
from distqtrl.allreduce.communicator import RankLost
from distqtrl.environment.rollout import bound, cut, summary
from distqtrl.files import replace as files
from distqtrl.files.places import quoted
from distqtrl.policy import policy_file
from distqtrl.policy.policy_file import Policy
from distqtrl.record import checkpoint
from distqtrl.record.checkpoint import State
from distqtrl.record.energy import Energy
from distqtrl.record.recorder import Recorder
from distqtrl.training import algorithms, updates
from distqtrl.training.build import build
from distqtrl.training.run import Run
from distqtrl.training.stopping import EXIT_CODES, Stopped
from distqtrl.training.weights import DeviceLost
from distqtrl.versions import versions

EQUAL = (
    "every group's rewards are equal, so nothing is learned (equal_groups in metrics.jsonl): ask questions that are "
    "neither too easy nor too hard, or raise language.group or language.temperature"
)

UNSAVED_S = 30.0  # of training; after an update that ends later there is a checkpoint
RARER = 20  # times as long as a checkpoint took pass before the next one of this kind

MET = "the target is reached already; evaluate.target none (and train.target none) lets it train on"


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
                    before.append(_copy(state(run)))
                if recorder is None:
                    recorder = agreed(run.comm, lambda: _recorder(run, directory))
                    run.energy = Energy(run.comm)
                    clock = _Clock(run)
                    if run.lost:
                        recorder.say(_loss(run))
                if run.finished or run.reached:
                    was_complete = (directory / f"result-{run.counters.update:06d}.json").exists()
                    if was_complete and not run.finished:
                        recorder.say(f"nothing is trained: {MET}")
                    return _conclude(run, directory, recorder, pending)
                _cycle(run, directory, recorder, clock, pending)
            except Stopped as stopped:
                told = {"status": "stopped", "signal": stopped.cause.name, "exit_code": EXIT_CODES[stopped.cause]}
                return {**told, **asdict(run.counters)}
            except RankLost:
                if recorder is not None:
                    recorder.close()
                _unmetered(run)
                _recover(run, before)
                recorder = None
    finally:
        _unmetered(run)
        if recorder is not None:
            recorder.close()


def _recorder(run: Run, directory: Path) -> Recorder:
    return Recorder(directory, run.comm.rank, run.counters.update, run.counters.env_steps, run.config)


def _loss(run: Run) -> str:
    return (
        f"lost rank {', '.join(map(str, run.lost))}: {run.comm.size} ranks and {run.num_environments} environments "
        f"go on from update {run.counters.update}"
    )


def _cycle(run: Run, directory: Path, recorder: Recorder, clock: "_Clock", pending: Sequence[signal.Signals]) -> None:
    """One update with everything around it. Raises Stopped, after a checkpoint, where a rank was asked to stop."""
    config, profile, before = run.config, run.policies.profile, run.counters.env_steps
    with _saved_when_a_device_fails(run, directory):
        metrics, stop, late = updates.update(run, pending, clock.late)
        synchronise(run)
        run.counters.validation_return = None
        if _due(run, config.evaluate.every):
            metrics |= _validation(run, recorder)
    elapsed_s = clock.lap_s()
    run.counters.train_s += elapsed_s
    metrics |= {"wall_s": run.counters.train_s, "steps_per_s": (run.counters.env_steps - before) / elapsed_s}
    metrics["profile_s"] = profile.take()
    if metrics.get("equal_groups") == 1 and not run.told:
        run.told = True
        recorder.say(f"update {metrics['update']}: {EQUAL}")
    with profile("write"):
        recorder.write(metrics, run.done)
        if stop or late or run.reached or _due(run, config.train.checkpoint_every):
            recorder.sync()
            _meter(run)
            with clock.saving():
                checkpoint.save(directory, config, run.comm, state(run))
    if stop:
        raise Stopped(stop)


def _recover(run: Run, before: Sequence[State]) -> None:
    """Go on without the ranks that are lost: back to the newest update that the others all have seen the start of.

    No rank is more than one reduction ahead of another, so that start is among the last two of every rank.
    """
    while True:
        run.lost = sorted([*run.lost, *run.comm.shrink()])
        try:
            local = np.array([before[-1].counters["update"], run.environments.num])
            update_R, num_R = run.comm.allgather(local).T
            break
        except RankLost:
            continue
    start = next(state for state in before if state.counters["update"] == update_R.min())
    again = build(
        run.config, run.comm, indices=run.environments.indices, num_environments=int(num_R.sum()), state=start
    )
    run.environments.close()
    run.policies, run.environments, run.counters = again.policies, again.environments, again.counters
    run.replay, run.best = again.replay, again.best
    run.num_environments, run.restarted = again.num_environments, again.restarted


def _meter(run: Run) -> None:
    """Count the energy since the last time."""
    if run.energy is not None:
        run.counters.metered = [a + b for a, b in zip(run.counters.metered, run.energy.take(), strict=True)]


def _unmetered(run: Run) -> None:
    """Meter no more."""
    if run.energy is not None:
        run.energy.close()


class _Clock:
    """Seconds of training since the last lap, writing included; and since the last checkpoint."""

    def __init__(self, run: Run) -> None:
        self._last = self._saved = time.perf_counter()
        self._save_s = 0.0
        run.policies.profile.busy_s()  # what came before is setup

    def lap_s(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last

    def late(self) -> bool:
        """Whether more is unsaved than a sudden end may cost; large checkpoints on slow disks are rarer."""
        return time.perf_counter() - self._saved > max(UNSAVED_S, RARER * self._save_s)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """The body writes a checkpoint."""
        began = time.perf_counter()
        yield
        self._saved = time.perf_counter()
        self._save_s = self._saved - began


@contextmanager
def _saved_when_a_device_fails(run: Run, directory: Path) -> Iterator[None]:
    """When a device that is not our own fails inside, what was before becomes a checkpoint."""
    if not run.policies.generated.external:
        yield
        return
    before = _copy(state(run))
    try:
        yield
    except DeviceLost as error:
        checkpoint.save(directory, run.config, run.comm, before)
        again = f"distqtrl train --resume {quoted(directory)} on {run.comm.size} rank{'s' if run.comm.size > 1 else ''}"
        raise DeviceLost(f"{error}; {before.counters['update']} updates are saved, resume with: {again}") from None


def synchronise(run: Run) -> None:
    """Average the parameters when they are due (always before they are looked at), or compare them between ranks."""
    a, update = run.config.allreduce, run.counters.update
    if a.aggregation == "average":
        if update % a.average_every == 0 or _due(run, run.config.evaluate.every) or run.finished:
            for learner in run.policies.learners:
                learner.average()
    elif update % a.check_every == 0 or run.finished:
        remedy = "these results cannot be trusted; resume the run from its last checkpoint"
        with run.policies.profile("allreduce"):
            check_equal(run.learner.comm, run.policies.fingerprint(), f"parameters after update {update}", remedy)


def _due(run: Run, every: int | None) -> bool:
    """Whether something done every so many updates, and at the end of the budget, is due."""
    return every is not None and (run.counters.update % every == 0 or run.finished)


def _validation(run: Run, recorder: Recorder) -> dict[str, Any]:
    """Metrics of greedy episodes."""
    num, counters = run.config.evaluate.validation_episodes, run.counters
    policies = _policies(run)
    with run.policies.profile("evaluate"):
        found = algorithms.chosen(run.config).greedy(run.config, run.comm, policies, "validation", counters.update, num)
    counters.validation_steps += found.steps
    counters.validation_return = float(found.returns.mean())
    if run.config.evaluate.keep == "best":
        _keep(run, policies, counters.validation_return)
    if found.cut and not run.told:
        run.told = True
        recorder.say(f"validation: {cut(found.cut, num, policies[0].origin['max_steps'])}")
    return {"validation_return": counters.validation_return, **({"validation_cut": found.cut} if found.cut else {})}


def _keep(run: Run, policies: list[Policy], validated: float) -> None:
    """Keep copies of the policies that validated better than any before."""
    if not run.best or validated > run.best[0].origin["validation_return"]:
        told = {"validation_return": validated}
        run.best = [replace(copy.deepcopy(policy), origin={**policy.origin, **told}) for policy in policies]


def _policies(run: Run) -> list[Policy]:
    """All policies as they are deployed; their origin says where their evaluations cut an episode without an end."""
    policies, config = run.policies.deployed(run.counters.env_steps), run.config
    most = bound(run.environments, config.evaluate.max_steps, run.counters.longest_episode)
    if most is not None:
        for policy in policies:
            policy.origin = {**policy.origin, "max_steps": most}
    return policies


def state(run: Run) -> State:
    """What a checkpoint holds of this rank; tensors may change with the run."""
    learner = {
        f"policy{role}/{name}": t.numpy()
        for role, learner in zip(run.policies.local_roles, run.policies.learners, strict=True)
        for name, t in learner.tensors().items()
    }
    return State(
        counters=asdict(run.counters),
        learner=learner,
        environments=run.environments.state(),
        ledger=run.policies.generated.ledger(),
        replay={} if run.replay is None else run.replay.state(),
        best=[policy.parts() for policy in run.best],
    )


def _copy(state: State) -> State:
    return replace(state, learner={name: t.copy() for name, t in state.learner.items()})


def _conclude(run: Run, directory: Path, recorder: Recorder, pending: Sequence[signal.Signals]) -> dict[str, Any]:
    """Write the policies, then evaluate them, and mark the run as complete.

    Raises Stopped where a rank is asked to stop meanwhile; a resume evaluates them again.
    """
    policies, num = run.best or _policies(run), run.config.evaluate.episodes
    if run.best:
        kept = policies[0].origin
        recorder.say(
            f"best validation: {kept['validation_return']:.1f} after {kept['env_steps']:,} steps; its policy stays"
        )
    _meter(run)
    if run.comm.rank == 0:
        for file, policy in zip(policy_file.names(run.policies.names), policies, strict=True):
            policy.save(directory / file)
    recorder.end()
    found = algorithms.chosen(run.config).greedy(run.config, run.comm, policies, "evaluation", 0, num, pending)
    agents = run.environments.agents
    result = {
        "status": "complete",
        "target_reached": run.reached,
        "policy_env_steps": policies[0].origin["env_steps"],
        "evaluation": {**summary(found.returns), "cut": found.cut, "max_steps": policies[0].origin.get("max_steps")},
        **({"agents": dict(zip(agents, found.returns_GE.mean(1).tolist(), strict=True))} if len(agents) > 1 else {}),
        "ranks": run.comm.size,
        "lost_ranks": run.lost,
        "qpu": None if run.learner.generator.qpu is None else run.learner.generator.qpu.facts(),
        "setup_s": run.setup_s,
        "energy": None if run.energy is None else run.energy.facts(*run.counters.metered),
        "versions": versions(),
        **asdict(run.counters),
    }
    if run.comm.rank == 0:
        files.replace(directory / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    return result
