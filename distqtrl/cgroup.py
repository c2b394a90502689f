"""What the kernel lets this process have: the limits of its control groups (Linux)."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # version 1 says "none" by a number near 2**63


def memory(root: Path = ROOT, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The least limit in bytes of this process's groups; None where there is none."""
    limits = [_number(folder / name) for folder in _folders(root, own, "memory") for name in MEMORY]
    return min((x for x in limits if x is not None and x < UNLIMITED), default=None)


def cpus(root: Path = ROOT, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """The least quota of processors of this process's groups; None where there is none."""
    quotas = []
    for folder in _folders(root, own, "cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(float(quota) / float(period))  # "max" is no number
        quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota_us and period_us and quota_us > 0:
            quotas.append(quota_us / period_us)
    return min(quotas, default=None)


MEMORY = ("memory.max", "memory.limit_in_bytes")  # of version 2, of version 1


def _folders(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups and of all above them."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = root / controllers if controllers else root
            folder = top / path.lstrip("/")
            yield folder
            yield from (above for above in folder.parents if above == top or top in above.parents)


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
