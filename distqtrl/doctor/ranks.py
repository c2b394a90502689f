"""What one rank runs on."""

import os
import platform
from typing import Any

import torch

from distqtrl.allreduce.connect import announced, oversubscribed


def rank_facts() -> dict[str, Any]:
    """Host, process, cores that it may run on, threads, and how it waits for others."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    caps = os.environ.get("OMP_NUM_THREADS", "unset")
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "cores": ",".join(str(c) for c in cores),
        "on_host": announced("on_host", without=1),
        "waits": "yielding its core" if oversubscribed() else "polling",
        "threads": f"torch {torch.get_num_threads()}, OMP_NUM_THREADS {caps}",
    }
