"""Save and resume: one file per checkpoint with the whole job's state, written by rank 0, whole or not at all.

    RUN/checkpoints/update-000040.safetensors    description: counters, ranks, configuration
        learner/policy<k>/<name>  replicas are equal: once; rank<r>/learner/... while ranks average parameters or hold
                                  different agents' policies
        environment/<name>        of all environments, keyed by global index: any number of ranks can share them
        rank<r>/ledger            what rank r's QPU was asked for

Random streams need no saving: they are keyed by (purpose, index, update).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as loads
from safetensors.numpy import save as dumps

from distqtrl import tensorfile
from distqtrl.allreduce.communicator import Communicator, allgather_bytes
from distqtrl.config import Config, UserError, may_change
from distqtrl.environment import vector
from distqtrl.tensorfile import Tensors

FORMAT = "distqtrl checkpoint 4"


@dataclass
class State:
    """What a rank needs to go on: counters, its replica, environments (its own, or more), its QPU's ledger."""

    counters: dict[str, Any]
    learner: Tensors
    environments: Tensors
    ledger: np.ndarray


def save(run: Path, config: Config, comm: Communicator, state: State) -> None:
    """Gather every rank's state to rank 0, which writes it and removes the oldest checkpoints.

    Raises OSError on rank 0 when the file cannot be written.
    """
    own = {f"environment/{name}": t for name, t in state.environments.items()} | {"ledger": state.ledger}
    if comm.rank == 0 or _differ(config):
        own |= {f"learner/{name}": t for name, t in state.learner.items()}
    packed = allgather_bytes(comm, dumps(own))
    if comm.rank:
        return
    parts = [loads(part) for part in packed]
    environments = vector.merged([below(part, "environment/") for part in parts])
    tensors = {f"environment/{name}": t for name, t in environments.items()}
    for r, part in enumerate(parts):
        tensors[f"rank{r}/ledger"] = part["ledger"]
        prefix = f"rank{r}/" if _differ(config) else ""
        tensors |= {f"{prefix}{name}": t for name, t in part.items() if name.startswith("learner/")}
    about = {"format": FORMAT, "ranks": comm.size, "config": _identity(config), **state.counters}
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    tensorfile.write(folder / f"update-{state.counters['update']:06d}.safetensors", about, tensors)
    for old in _files(run)[: -config.train.keep_checkpoints]:
        old.unlink()


def load(run: Path, config: Config, comm: Communicator) -> State:
    """The newest checkpoint's state, with the environments of all ranks; does not communicate.

    Any number of ranks can go on, unless parameters are averaged; with another number, rank 0 takes the whole ledger.
    Raises UserError when there is no checkpoint, it is damaged, or of another configuration.
    """
    files = _files(run)
    if not files:
        raise UserError(f"{run} has no checkpoint: start the run again without --resume")
    path = files[-1]
    remedy = "delete it to resume from the one before" if len(files) > 1 else "start the run again"
    about, tensors = tensorfile.read(path, FORMAT, remedy)
    if about["config"] != _identity(config):
        raise UserError(f"{path} belongs to another configuration than {run}/config.json: restore config.json")
    learner, ranks = "learner/", about["ranks"]
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
    return State(about, below(tensors, learner), environments, ledger_R[comm.rank])


def _differ(config: Config) -> bool:
    """Whether ranks have parameters of their own."""
    return config.allreduce.aggregation == "average" or config.agents.placement == "spread"


def _files(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("update-*.safetensors"))


def _identity(config: Config) -> str:
    """Of what a run keeps: a checkpoint serves every budget, target and evaluation."""
    kept = [
        (f"{stage}.{field}", value)
        for stage, fields in config.model_dump(mode="json").items()
        for field, value in fields.items()
        if not may_change(f"{stage}.{field}")
    ]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def below(tensors: Tensors, prefix: str) -> Tensors:
    """Those whose names begin so, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
