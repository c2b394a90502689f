"""Save and resume: one file per checkpoint with every rank's state, written by rank 0, whole or not at all.

    RUN/checkpoints/update-000040.safetensors    tensors "rank<r>/<name>"; description: counters, ranks, configuration

Random streams need no saving: they are keyed by (purpose, index, update).
"""

import hashlib
from pathlib import Path
from typing import Any

from safetensors.numpy import load as loads
from safetensors.numpy import save as dumps

from distqtrl import tensorfile
from distqtrl.allreduce.communicator import Communicator, allgather_bytes
from distqtrl.config import Config, UserError
from distqtrl.config import save as config_text
from distqtrl.tensorfile import Tensors

FORMAT = "distqtrl checkpoint 1"


def save(run: Path, config: Config, comm: Communicator, counters: dict[str, Any], tensors: Tensors) -> None:
    """Gather this rank's tensors to rank 0, which writes them and removes the oldest checkpoints.

    A rank may leave out what equals rank 0's. Raises OSError on rank 0 when the file cannot be written.
    """
    parts = allgather_bytes(comm, dumps(tensors))
    if comm.rank:
        return
    merged = {f"rank{r}/{name}": t for r, part in enumerate(parts) for name, t in loads(part).items()}
    about = {"format": FORMAT, "ranks": comm.size, "config": _identity(config), **counters}
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    tensorfile.write(folder / f"update-{counters['update']:06d}.safetensors", about, merged)
    for old in _files(run)[: -config.train.keep_checkpoints]:
        old.unlink()


def load(run: Path, config: Config, comm: Communicator) -> tuple[dict[str, Any], Tensors]:
    """Counters and this rank's tensors of the newest checkpoint; does not communicate.

    Raises UserError when there is none, it is damaged, or its configuration or number of ranks differ.
    """
    files = _files(run)
    if not files:
        raise UserError(f"{run} has no checkpoint: start the run again without --resume")
    path = files[-1]
    remedy = "delete it to resume from the one before" if len(files) > 1 else "start the run again"
    about, merged = tensorfile.read(path, FORMAT, remedy)
    if about["ranks"] != comm.size:
        raise UserError(
            f"{path} was written by {about['ranks']} ranks, this job has {comm.size}: use mpirun -n {about['ranks']}"
        )
    if about["config"] != _identity(config):
        raise UserError(f"{path} belongs to another configuration than {run}/config.json: restore config.json")
    mine: Tensors = {}
    for prefix in dict.fromkeys(("rank0/", f"rank{comm.rank}/")):
        mine |= {name.removeprefix(prefix): t for name, t in merged.items() if name.startswith(prefix)}
    return about, mine


def _files(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("update-*.safetensors"))


def _identity(config: Config) -> str:
    return hashlib.sha256(config_text(config).encode()).hexdigest()
