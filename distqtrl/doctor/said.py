"""What the ranks of a site check said, and what that means."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distqtrl.doctor import probe
from distqtrl.doctor.launching import Site, started, until
from distqtrl.doctor.verdict import Unanswered, Verdict, failed, not_checked, ok, warning
from distqtrl.record.directory import VISIBLE_WITHIN_S

MIB = 1 << 20
RANK_BYTES = 512 * MIB  # of one rank: up to 419 MiB were measured (benchmarks/results/scaling)
SHARED_BYTES = 4 * MIB  # of /dev/shm for one rank: MPICH was seen to fail with 1 MiB for all, and to run with 8
SKEWED_S, FAR_S = 0.5, 5.0  # a clock that is off; so far off that a new file looks old (allreduce.leftovers)
UNLIMITED = 1 << 62
LEAST = {"NOFILE": 256, "NPROC": 128, "FSIZE": 1 << 30, "AS": 8 << 30, "CPU": 3600}  # files, processes, bytes, seconds


@dataclass
class Said:
    """The lines of a probe. Where ranks did not get so far, the later ones are not there."""

    ranks: int  # that were asked for
    processes: list[dict[str, Any]] = field(default_factory=list)  # what each said before MPI, in no order
    together: dict[str, list[Any]] = field(default_factory=dict)  # by stage: what each rank said
    refused: str = ""
    code: int | None = None  # the launcher's; None: it did not end in time
    last: str = ""  # the last line that is not ours

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What every rank runs on."""
        return self.of("facts")

    def of(self, stage: str) -> list[Any]:
        """What each rank said in a stage; raises Unanswered where they did not get so far."""
        if stage not in self.together:
            raise Unanswered(f"the ranks did not get as far as their {stage}: {self.ended()}: {self.last}")
        return self.together[stage]

    def ended(self) -> str:
        """How it came to an end."""
        return "no answer in time" if self.code is None else f"the launcher ended with {self.code}"


def asked(site: Site, folder: Path, limit_s: float) -> dict[str, Any]:
    """Start the ranks, and return the fields of what they said."""
    words = ["-m", "distqtrl.doctor.probe", str(folder), str(limit_s)]
    with started(site, words) as job:
        until(lambda: job.process.poll() is not None, limit_s)
        return vars(read(job.text(), site.ranks, job.process.poll()))


def read(text: str, ranks: int, code: int | None) -> Said:
    """The lines of a probe in a launcher's output."""
    said = Said(ranks, code=code)
    for line in text.splitlines():
        if not line.startswith(probe.PREFIX):
            said.last = line.strip()[:300] or said.last
            continue
        name, value = json.loads(line.removeprefix(probe.PREFIX))
        if name == "process":
            said.processes.append(value)
        elif name == "refused":
            said.refused = value
        else:
            said.together[name] = value
    return said


# ---- before MPI


def start(said: Said) -> Verdict:
    """The launcher starts as many processes as it is asked for."""
    if len(said.processes) == said.ranks:
        return ok(f"{said.ranks} processes on {_counted(process['host'] for process in said.processes)}")
    end = "had to be ended" if said.code is None else f"ended with {said.code}"
    return failed(f"{len(said.processes)} of {said.ranks} processes answered, the launcher {end}: {said.last}")


def pmi(said: Said) -> Verdict:
    """Every process is told its number and how many there are."""
    numbers = sorted((process["rank"], process["size"]) for process in said.processes)
    if numbers == [(rank, said.ranks) for rank in range(said.ranks)]:
        return ok(f"{' and '.join(dict.fromkeys(name for p in said.processes for name in p['pmi']))}: every rank once")
    told = ", ".join(f"{rank} of {size}" for rank, size in numbers)
    return failed(f"the processes were told that they are rank {told}")


def signal_masks(said: Said) -> Verdict:
    """No stop signal is blocked or ignored in what the launcher starts."""
    for how in ("blocked", "ignored"):
        names = sorted({name for process in said.processes for name in process[how]})
        if names:
            return failed(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} {how} in the ranks' processes")
    return ok("SIGUSR1 and SIGTERM are neither blocked nor ignored")


def connection(said: Said) -> Verdict:
    """The ranks see each other."""
    if len(said.together.get("facts", [])) == said.ranks:
        return ok(f"{said.ranks} ranks, {' '.join(said.facts[0]['mpi'].split())}")
    if said.refused:
        return failed(said.refused)
    if len(said.together.get("facts", [])) == 1:
        return failed(f"each of the {said.ranks} processes is alone: rank 0 of 1")
    return failed(f"the ranks did not get together: {said.ended()}: {said.last}")


# ---- each rank's own


def versions(said: Said) -> Verdict:
    """All ranks run the same Python and packages."""
    first = said.facts[0]
    for rank, facts in enumerate(said.facts):
        differing = {k: v for k, v in facts["versions"].items() if v != first["versions"][k]}
        if differing:
            there = ", ".join(f"{name} {version}" for name, version in differing.items())
            here = ", ".join(f"{name} {first['versions'][name]}" for name in differing)
            return failed(f"rank {rank} on {facts['host']} has {there}; rank 0 on {first['host']} has {here}")
    shown = ", ".join(f"{name} {first['versions'][name]}" for name in ("python", "torch", "mpi4py"))
    return ok(f"the same on all ranks: {shown}")


def binding(said: Said) -> Verdict:
    """Ranks of a host have cores of their own."""
    crowded = False
    for host, ranks in _by_host(said.facts).items():
        for cores, count in Counter(facts["cores"] for facts in ranks).items():
            own = cores.count(",") + 1
            if count <= own:
                continue
            if any(facts["launcher_cores"] and facts["launcher_cores"] > own for facts in ranks):
                return failed(f"{count} ranks on {host} are bound to core {cores}, and there are others")
            crowded = True
    if crowded:
        return warning(
            "more ranks than cores: they take turns",
            "start as many ranks as cores; the check takes another number with --ranks",
        )
    shown = "; ".join(f"rank {rank}: {facts['cores']}" for rank, facts in enumerate(said.facts[:8]))
    return ok(f"cores of {shown}{'; ...' if len(said.facts) > 8 else ''}")


def threads(said: Said) -> Verdict:
    """Threads of the ranks do not starve each other."""
    for facts in said.facts:
        count, own = facts["torch_threads"], facts["cores"].count(",") + 1
        if count > own:
            return warning(
                f"{count} threads of a rank on {facts['host']} share {own} core{'s' * (own > 1)}",
                "export OMP_NUM_THREADS=1, or ask for as many CPUs per task as train.threads",
            )
    return ok(f"{said.facts[0]['threads']} on every rank")


def cpus(said: Said) -> Verdict:
    """As many processors as are seen may be used."""
    for facts in said.facts:
        own, quota = facts["cores"].count(",") + 1, facts["quota"]
        if quota and quota < min(own, facts["on_host"]):
            return warning(
                f"{own} cores are seen on {facts['host']}, its control group gives {quota:g} of them",
                "ask for as many CPUs as ranks times train.threads: --cpus-per-task, ncpus, docker --cpus",
            )
        given = facts["allocated"]
        if given and own > given >= 1:
            return warning(
                f"the job has {given} CPUs on {facts['host']}, a rank may run on {own}: jobs can disturb each other",
                "ask the site for TaskPlugin=task/affinity or task/cgroup with ConstrainCores",
            )
    first = said.facts[0]
    return ok(f"{first['cores'].count(',') + 1} of {first['host_cores']} cores of {first['host']}, no smaller quota")


def memory(said: Said) -> Verdict:
    """Memory for all ranks of a host."""
    unknown = "neither the host nor a control group says how much there is"
    return _shared(said, "memory", RANK_BYTES, lambda share: f"{share // MIB:,}", unknown)


def shared_memory(said: Said) -> Verdict:
    """Room in /dev/shm, by which ranks of a host speak."""
    return _shared(said, "shared", SHARED_BYTES, lambda share: f"{share / MIB:,.1f}", "there is no /dev/shm here")


def _shared(said: Said, name: str, enough: int, shown: Callable[[int], str], unknown: str) -> Verdict:
    """Whether what a host has of something, shared among its ranks, is enough bytes for each."""
    shares = [(facts[name] // facts["on_host"], facts) for facts in said.facts if facts[name] is not None]
    if not shares:
        return not_checked(unknown)
    least, facts = min(shares, key=lambda pair: pair[0])
    text = f"{shown(least)} MiB for each of {facts['on_host']} ranks on {facts['host']}"
    return ok(text) if least >= enough else failed(text)


def limits(said: Said) -> Verdict:
    """ulimit lets a training be."""
    low: dict[str, None] = {}
    for facts in said.facts:
        for name, limit in facts["limits"].items():
            if 0 <= limit < UNLIMITED and limit < LEAST[name]:
                low[f"RLIMIT_{name} = {limit:,} on {facts['host']}"] = None
    if low:
        return warning(
            ", ".join(low), "raise them in the batch script with ulimit (-n, -u, -f, -v, -t), or ask the site"
        )
    return ok("files, processes, file sizes, address space and CPU seconds are enough")


# ---- what they found together


def reductions(said: Said) -> Verdict:
    """All ranks get the same bytes."""
    for name in said.of("sums")[0]:
        digests = [sums[name] for sums in said.of("sums")]
        odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if odd:
            return failed(f"the sum {name} on rank {', '.join(map(str, odd))} is not that of rank 0")
    return ok(f"{', '.join(said.together['sums'][0])}: the same bytes on all ranks")


def clocks(said: Said) -> Verdict:
    """Hosts agree on the time."""
    first, *others = said.of("clocks")
    skews = [sorted(b - a for a, b in zip(first, other, strict=True))[len(first) // 2] for other in others]
    worst = max(range(len(skews)), key=lambda i: abs(skews[i]), default=None)
    if worst is None:
        return not_checked("there is one rank: --ranks 2")
    host = said.facts[worst + 1]["host"]
    return _skewed(
        skews[worst], f"the clock of rank {worst + 1} on {host} and that of rank 0 on {said.facts[0]['host']}"
    )


def stamps(said: Said) -> Verdict:
    """The filesystem's times are the hosts'."""
    if error := _error(said.of("stamps")):
        return failed(error)
    worst = max(range(said.ranks), key=lambda rank: abs(said.of("stamps")[rank]["skew_s"]))
    skew_s = said.of("stamps")[worst]["skew_s"]
    return _skewed(skew_s, f"times of new files and the clock of rank {worst} on {said.facts[worst]['host']}")


def _skewed(skew_s: float, what: str) -> Verdict:
    text = f"{what} are {abs(skew_s):.3g} s apart"
    if abs(skew_s) > FAR_S:
        return failed(text)
    return warning(text, "ask the site to keep the hosts' clocks by NTP") if abs(skew_s) > SKEWED_S else ok(text)


def visible(said: Said) -> Verdict:
    """Every rank sees the run directory."""
    told = said.of("visible")
    if error := _error(told):
        return failed(error)
    blind = [rank for rank, answer in enumerate(told) if answer["after_s"] is None]
    if blind:
        who = ", ".join(f"rank {rank} on {said.facts[rank]['host']}" for rank in blind)
        return failed(f"what rank 0 on {said.facts[0]['host']} wrote was not seen in {VISIBLE_WITHIN_S:g} s by {who}")
    return ok(f"a new file was seen by all ranks after {max(answer['after_s'] for answer in told):.2f} s")


def locks(said: Said) -> Verdict:
    """A lock that rank 0 holds is refused to the others."""
    told = [answer["lock"] for answer in said.of("locks")]
    if told[0] != "granted":
        return failed(f"rank 0: {told[0]}")
    if "granted" in told[1:]:
        rank = told.index("granted", 1)
        return failed(f"rank 0 holds a lock, and rank {rank} on {said.facts[rank]['host']} got it, too")
    odd = next((f"rank {rank}: {text}" for rank, text in enumerate(told[1:], 1) if text != "refused"), "")
    if odd:
        return failed(odd)
    if said.ranks == 1:
        return not_checked("there is one rank: --ranks 2")
    hosts = len(_by_host(said.facts))
    return ok(f"rank 0's lock was refused to {said.ranks - 1} on {hosts} host{'s' * (hosts > 1)}")


def own_signal(said: Said) -> Verdict:
    """SIGUSR1 reaches Python while MPI is loaded."""
    deaf = [str(rank) for rank, answer in enumerate(said.of("own_signal")) if not answer["arrived"]]
    if deaf:
        return failed(f"a SIGUSR1 that rank {', '.join(deaf)} sent to itself did not arrive")
    return ok("every rank got the SIGUSR1 that it sent to itself")


def _by_host(facts: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for rank in facts:
        found.setdefault(rank["host"], []).append(rank)
    return found


def _counted(hosts: Iterable[str]) -> str:
    return ", ".join(f"{host} ({count})" for host, count in Counter(hosts).items())


def _error(answers: list[dict[str, Any]]) -> str:
    """What a rank says of an error, if one does."""
    return next((f"rank {rank}: {a['error']}" for rank, a in enumerate(answers) if "error" in a), "")
