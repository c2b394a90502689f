"""Save and resume: one file per checkpoint with the whole job's state, written by rank 0, whole or not at all.

    RUN/checkpoints/update-000040.safetensors    description: counters, ranks, configuration
        learner/policy<k>/<name>  equal on all ranks: once; rank<r>/learner/... while ranks average parameters or learn
                                  different agents' policies
        environment/<name>        of all environments, keyed by global index: any number of ranks can share them;
                                  replay_<name> among them, where the algorithm has a replay
        rank<r>/ledger            what rank r's QPU was asked for
        best/policy<k>/<name>     of the policies that validated best, where they are kept; their descriptions are in
                                  the checkpoint's

Random streams need no saving: they are keyed by (purpose, index, update).
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field
from safetensors.numpy import load as loads
from safetensors.numpy import save as dumps

from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import gather_bytes
from distqtrl.config.run import Config, flat, may_change
from distqtrl.environment import vector
from distqtrl.errors import UserError, shortened
from distqtrl.files import schema
from distqtrl.files import tensors as tensorfile
from distqtrl.files.schema import LARGE, Count, Record, Sha256
from distqtrl.files.tensors import Tensors
from distqtrl.policy.policy_file import Parts
from distqtrl.record.directory import checkpoints

FORMAT = "distqtrl checkpoint 5"
NAME = re.compile(r"\A(environment/\w+|(rank\d+/)?learner/[\w./]+|rank\d+/ledger|best/policy\d+/\w+)\Z")
DTYPES = [np.float32, np.float64, np.int64, np.bool_]
MOST_RANKS = 1 << 20
REPLAY = "replay_"
Seconds = Field(ge=0, le=LARGE)


class Description(Record):
    """What a checkpoint holds besides tensors; a newer version may count more."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["distqtrl checkpoint 5"]
    ranks: int = Field(ge=1, le=MOST_RANKS)
    config: Sha256
    update: Count
    env_steps: Count
    validation_steps: Count
    episodes: Count
    train_s: float = Seconds
    cpu_s: float = Seconds
    recent: tuple[float, ...]
    acted: tuple[Count, ...]
    longest_episode: Count
    validation_return: float | None
    metered: tuple[float, float, float] = (0.0, 0.0, 0.0)
    best: tuple[dict[str, Any], ...] = ()


@dataclass
class State:
    """What a rank needs to go on: counters, its learners, environments (its own, or more), its QPU's ledger."""

    counters: dict[str, Any]
    learner: Tensors
    environments: Tensors
    ledger: np.ndarray
    origin: str = ""  # the file, where it is from one
    replay: Tensors = field(default_factory=dict)  # a row per environment; names begin with REPLAY
    best: list[Parts] = field(default_factory=list)  # of all policies, where one validated


def save(run: Path, config: Config, comm: Communicator, state: State) -> None:
    """Gather every rank's state to rank 0, which writes it and removes the oldest checkpoints.

    Raises OSError on rank 0 when the file cannot be written.
    """
    rows = state.environments | state.replay
    local = {f"environment/{name}": t for name, t in rows.items()} | {"ledger": state.ledger}
    if comm.rank == 0 or _differ(config):
        local |= {f"learner/{name}": t for name, t in state.learner.items()}
    packed = gather_bytes(comm, dumps(local))
    if comm.rank:
        return
    parts = [loads(part) for part in packed]
    environments = vector.merged([below(part, "environment/") for part in parts])
    tensors = {f"environment/{name}": t for name, t in environments.items()}
    for r, part in enumerate(parts):
        tensors[f"rank{r}/ledger"] = part["ledger"]
        prefix = f"rank{r}/" if _differ(config) else ""
        tensors |= {f"{prefix}{name}": t for name, t in part.items() if name.startswith("learner/")}
    for k, (_, best) in enumerate(state.best):
        tensors |= {f"best/policy{k}/{name}": t for name, t in best.items()}
    described = [about for about, _ in state.best]
    about = {"format": FORMAT, "ranks": comm.size, "config": _identity(config), "best": described, **state.counters}
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    tensorfile.write(folder / f"update-{state.counters['update']:06d}.safetensors", about, tensors)
    for old in checkpoints(run)[: -config.train.keep_checkpoints]:
        old.unlink()


def load(run: Path, config: Config, comm: Communicator) -> State:
    """The newest checkpoint's state, with the environments of all ranks; does not communicate.

    Any number of ranks can go on, unless parameters are averaged; with another number, rank 0 takes the whole ledger.
    Raises UserError when there is no checkpoint, or it is damaged or belongs to another configuration.
    """
    files = checkpoints(run)
    if not files:
        raise UserError(f"{run} has no checkpoint: start the run again without --resume")
    path = files[-1]
    remedy = "delete it to resume from the one before" if len(files) > 1 else "start again in another directory"
    about, tensors = tensorfile.read(path, FORMAT, remedy)
    try:
        told = schema.checked(Description, about)
        _check(told.ranks, tensors)
    except ValueError as error:
        raise UserError(f"{path} is not a checkpoint ({error}): {remedy}") from None
    if told.config != _identity(config):
        raise UserError(f"{path} belongs to another configuration than {run}/config.json: restore config.json")
    learner, ranks = "learner/", told.ranks
    if ranks != comm.size and (config.allreduce.aggregation != "mean" or config.agents.placement == "spread"):
        what = f"allreduce.aggregation {config.allreduce.aggregation}"
        if config.agents.placement == "spread":
            what = "agents.placement spread"
        raise UserError(
            f"{path} was written by {ranks} ranks, this job has {comm.size}, and {what} depends on their number: use "
            f"mpirun -n {ranks}"
        )
    if _differ(config):
        learner = f"rank{comm.rank}/learner/"
    environments = below(tensors, "environment/")
    if comm.size > len(environments["index_B"]):
        raise UserError(
            f"{path} has {len(environments['index_B'])} environments, too few for {comm.size} ranks: use fewer ranks"
        )
    ledger_R = np.stack([tensors[f"rank{r}/ledger"] for r in range(ranks)])
    if ranks != comm.size:
        whole, ledger_R = ledger_R.sum(0), np.zeros((comm.size, ledger_R.shape[1]), dtype=ledger_R.dtype)
        ledger_R[0] = whole
    return State(
        counters=about | {"train_s": told.train_s, "cpu_s": told.cpu_s, "metered": list(told.metered)},
        learner=below(tensors, learner),
        environments={name: t for name, t in environments.items() if not name.startswith(REPLAY)},
        ledger=ledger_R[comm.rank],
        origin=str(path),
        replay={name: t for name, t in environments.items() if name.startswith(REPLAY)},
        best=[(described, below(tensors, f"best/policy{k}/")) for k, described in enumerate(told.best)],
    )


def _check(ranks: int, tensors: Tensors) -> None:
    """Raise ValueError unless names and types are those of a checkpoint of that many ranks, and every environment and
    every ledger is there; learners check their own tensors."""
    for name, tensor in tensors.items():
        if not NAME.match(name):
            raise ValueError(f"tensor {shortened(name)} does not belong there")
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} holds {tensor.dtype}")
        tensorfile.check_finite(name, tensor)
    ledgers = {name: t for name, t in tensors.items() if name.endswith("/ledger")}
    tensorfile.check(ledgers, {f"rank{r}/ledger": (np.int64, (3,)) for r in range(min(ranks, len(ledgers) + 1))})
    if any(counts.min() < 0 for counts in ledgers.values()):
        raise ValueError("a ledger holds a negative number")
    environments = below(tensors, "environment/")
    shapes: dict[str, tuple[type, tensorfile.Shape]] = {
        "index_B": (np.int64, (None,)),
        "episode_B": (np.int64, (None,)),
    }
    shapes |= {"length_B": (np.int64, (None,)), "obs_BO": (np.float32, (None, None))}
    tensorfile.check({name: t for name, t in environments.items() if name in shapes}, shapes)
    index_B, length_B = environments["index_B"], environments["length_B"]
    for name in ("index_B", "episode_B"):
        if environments[name].max(initial=0) > LARGE:
            raise ValueError(f"environment/{name} holds {environments[name].max()}")
    if len({len(environments[name]) for name in shapes}) > 1 or not len(index_B):
        raise ValueError("the environments have states of different numbers of environments")
    if len(np.unique(index_B)) < len(index_B) or min(index_B.min(), environments["episode_B"].min()) < 0:
        raise ValueError("environment/index_B and episode_B are not numbers of environments and episodes")
    actions = environments.get("actions", np.zeros(0))
    if length_B.min() < 0 or length_B.max() > len(actions) or length_B.sum() != len(actions):
        raise ValueError(f"environment/length_B does not add up to {len(actions)} actions")
    for name, t in environments.items():
        if name.startswith(REPLAY) and (not t.ndim or len(t) != len(index_B)):
            raise ValueError(f"environment/{name} has the shape {t.shape} for {len(index_B)} environments")


def _differ(config: Config) -> bool:
    """Whether parameters differ between ranks."""
    return config.allreduce.aggregation == "average" or config.agents.placement == "spread"


def _identity(config: Config) -> str:
    """A digest of what a run keeps: a checkpoint serves every budget, target and evaluation."""
    kept = [(key, value) for key, value in flat(config).items() if not may_change(key)]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def below(tensors: Tensors, prefix: str) -> Tensors:
    """The entries whose names begin with the prefix, which is taken off."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
