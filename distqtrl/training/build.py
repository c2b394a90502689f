"""A run, made fresh or from a checkpoint."""

import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from distqtrl.algorithm.replay import Replay
from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.config.run import Config
from distqtrl.environment.vector import Environments, Role, make
from distqtrl.errors import UserError
from distqtrl.generator import generator
from distqtrl.policy.distribution import Head
from distqtrl.policy.network import Architecture
from distqtrl.record import checkpoint
from distqtrl.record.checkpoint import State
from distqtrl.record.profile import Profile
from distqtrl.training import demand, roles
from distqtrl.training.learner import Learner
from distqtrl.training.placement import blocks
from distqtrl.training.policies import Policies
from distqtrl.training.policy_gradient.learner import PolicyGradient
from distqtrl.training.run import Counters, Run
from distqtrl.training.soft_actor_critic.learner import SoftActorCritic
from distqtrl.training.weights import Generated, shares

SURVIVING = "needs Open MPI 5 and mpirun --with-ft ulfm"


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
    architectures = roles.architectures(config, environments)
    a, replay = config.algorithm, None
    if a.name == "sac":
        capacity = max(a.replay // num_environments, a.rollout_steps)
        replay = Replay(len(own), capacity, architectures[0][0].num_inputs, architectures[0][1].num_outputs)
    policies = _policies(config, comm, played, architectures, environments, num_environments)
    run = Run(config, comm, policies, environments, replay, Counters(), num_environments)
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
    policies, environments, replay = run.policies, run.environments, run.replay
    for role, learner in zip(policies.local_roles, policies.learners, strict=True):
        own_tensors = checkpoint.below(state.learner, f"policy{role}/")
        learner.load({name: torch.from_numpy(t) for name, t in own_tensors.items()})
    policies.generated.set_ledger(state.ledger)
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


def _policies(
    config: Config,
    comm: Communicator,
    played: list[Role],
    architectures: list[tuple[Architecture, Head]],
    environments: Environments,
    num_environments: int,
) -> Policies:
    """The policies, and the learners of those that this rank holds."""
    local_roles, ranks = list(range(len(played))), list(range(comm.size))
    if config.agents.placement == "spread":
        local_roles, ranks = blocks(len(played), comm)
    block = comm if len(ranks) == comm.size else comm.among(ranks)
    parts = np.array_split(range(num_environments), comm.size)
    shared = sum(len(parts[rank]) for rank in ranks)
    if config.allreduce.aggregation == "average":
        shared = environments.num
    profile = Profile(config.qpu.replicas)
    generated: Generated | None = None
    if len(played) > 1:
        layers = [architecture.layers for architecture, _ in architectures]
        generated = Generated(generator.several(config, layers, local_roles, shares(block)), profile)
    learners: list[Learner] = []
    for place, role in enumerate(local_roles):
        args = (config, *architectures[role], block, profile, shared * len(played[role]), role, generated, place)
        if config.algorithm.name == "sac":
            learners.append(SoftActorCritic(*args))
        else:
            learners.append(PolicyGradient(*args, num_states=roles.num_states(environments, played[role])))
    return Policies(config, comm, profile, played, architectures, local_roles, learners)
