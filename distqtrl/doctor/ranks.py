"""What one rank runs on."""

import os
import platform
from typing import Any

import torch

from distqtrl.allreduce.connect import announced, given_cores, oversubscribed


def rank_facts() -> dict[str, Any]:
    """Host, process, cores that it may run on, threads, and how it waits for others."""
    caps = os.environ.get("OMP_NUM_THREADS", "unset")
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "cores": ",".join(str(c) for c in given_cores()),
        "on_host": announced("on_host", without=1),
        "waits": "asleep" if oversubscribed() else "polling",
        "threads": f"torch {torch.get_num_threads()}, OMP_NUM_THREADS {caps}",
    }
