"""A run, made fresh or from a checkpoint."""

import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.config.run import Config
from distqtrl.environment.vector import Environments
from distqtrl.errors import UserError
from distqtrl.policy import policy_file
from distqtrl.record import checkpoint, trackers
from distqtrl.record.checkpoint import State
from distqtrl.record.profile import Profile
from distqtrl.training import algorithms, demand
from distqtrl.training.learner import Setup
from distqtrl.training.placement import blocks
from distqtrl.training.plan import Plan, plan
from distqtrl.training.policies import Policies
from distqtrl.training.run import Counters, Run
from distqtrl.training.weights import Generated

SURVIVING = "needs Open MPI 5 and mpirun --with-ft ulfm"


def prepare(config: Config, comm: Communicator, resume: Path | None = None) -> Run:
    """The run on this rank, ready to train; with ``resume``, where that run directory's last checkpoint left it.

    Writes nothing and does not communicate. Raises UserError for a configuration that cannot run and for a
    checkpoint that cannot be used.
    """
    began = time.perf_counter()
    _check_ranks(config, comm)
    demand.check_settings(config)
    if comm.rank == 0:  # the only one that tells them
        trackers.check(config.train.trackers)
    torch.set_num_threads(config.train.threads)
    state = None if resume is None else checkpoint.load(resume, config, comm)
    every = np.arange(comm.size * config.local_num) if state is None else state.environments["index_B"]
    indices = np.array_split(every, comm.size)[comm.rank].tolist()
    run = build(config, comm, indices=indices, num_environments=len(every), state=state)
    run.setup_s = time.perf_counter() - began
    return run


def compare(comm: Communicator, run: Run) -> None:
    """Raise Refused on every rank unless all of them found the same environment."""
    for what, fact in run.environments.facts().items():
        found = [text.decode() for text in allgather_bytes(comm, fact.encode())]
        other = next((rank for rank, text in enumerate(found) if text != found[0]), None)
        if other is not None:
            raise Refused(
                f"{run.config.subject}: ranks found different {what}: rank 0 {found[0]}, rank {other} "
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
    algorithms.chosen(config).learner.check(config, comm.size * config.local_num)
    if config.allreduce.lost_rank == "shrink" and not comm.survives:
        raise UserError(f"allreduce.lost_rank = shrink {SURVIVING}, this is {comm.describe()['mpi']}: use abort")


def build(
    config: Config, comm: Communicator, *, indices: Sequence[int], num_environments: int, state: State | None
) -> Run:
    """A run whose environments ``indices``, of so many in all, are this rank's, fresh or as state says."""
    planned = plan(config)
    environments = _environments(config, planned, indices)
    make_replay, replay = planned.algorithm.replay, None
    if make_replay is not None:
        replay = make_replay(config, planned.specs[0], len(indices), num_environments)
    run = Run(
        config=config,
        comm=comm,
        policies=_policies(config, comm, planned, environments.num, num_environments),
        environments=environments,
        replay=replay,
        counters=Counters(),
        num_environments=num_environments,
    )
    if state is not None:
        run.counters = Counters(**{f.name: state.counters[f.name] for f in fields(Counters)})
        try:
            _restore(run, state)
        except (AssertionError, LookupError, TypeError, ValueError, RuntimeError) as error:  # some are an environment's
            if not state.origin:
                raise
            cause = str(error).splitlines() or [type(error).__name__]
            raise UserError(
                f"{state.origin} does not fit this run ({cause[0]}): delete it, or start the run again"
            ) from None
    return run


def _environments(config: Config, planned: Plan, indices: Sequence[int]) -> Environments:
    """This rank's environments, or what the algorithm has in their place."""
    if planned.algorithm.environments is not None:
        found: Environments = planned.algorithm.environments(planned.specs[0], indices, config.train.seed)
        return found
    return Environments(
        config.environment,
        indices,
        seed=config.train.seed,
        purpose="episode",
        roles=planned.roles,
        central=planned.central,
    )


def _restore(run: Run, state: State) -> None:
    """Put learners, ledger, environments and replay where the state says; raises ValueError where it does not fit."""
    for role, learner in zip(run.policies.local_roles, run.policies.learners, strict=True):
        found = checkpoint.below(state.learner, f"policy{role}/")
        learner.load({name: torch.from_numpy(t) for name, t in found.items()})
    run.policies.generated.set_ledger(state.ledger)
    if run.config.evaluate.keep == "best":
        run.best = [policy_file.made(*parts) for parts in state.best]
    run.restarted = run.environments.restore(state.environments)
    if run.replay is not None:
        rows = state.environments["index_B"].tolist()
        run.replay.restore(state.replay, [rows.index(index) for index in run.environments.indices])


def _policies(config: Config, comm: Communicator, planned: Plan, local_num: int, num_environments: int) -> Policies:
    """The policies, and the learners of those that this rank learns."""
    local_roles, ranks = list(range(len(planned.specs))), list(range(comm.size))
    if config.agents.placement == "spread":
        local_roles, ranks = blocks(len(planned.specs), comm)
    block = comm if len(ranks) == comm.size else comm.subset(ranks)
    parts = np.array_split(range(num_environments), comm.size)
    sharing = sum(len(parts[rank]) for rank in ranks)  # environments whose gradients are summed
    if config.allreduce.aggregation == "average":
        sharing = local_num
    profile = Profile(config.qpu.replicas)
    layers_K = [spec.layers(config.adapter) for spec in planned.specs]
    generated = Generated(config, layers_K, local_roles, comm=block, profile=profile)
    learners = [
        planned.algorithm.learner_of(planned.specs[role])(
            Setup(
                config=config,
                spec=planned.specs[role],
                generated=generated,
                comm=block,
                profile=profile,
                num_environments=sharing * len(planned.specs[role].agents),
                number=role,
                place=place,
            )
        )
        for place, role in enumerate(local_roles)
    ]
    return Policies(
        config=config,
        comm=comm,
        profile=profile,
        specs=planned.specs,
        local_roles=local_roles,
        learners=learners,
    )
