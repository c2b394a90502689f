"""distqtrl doctor: what is installed, and how ranks are placed."""

import json
from argparse import ArgumentParser, Namespace

from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.cli.arguments import Flags, add_alone
from distqtrl.cli.output import print_json, tell

TEXT = "Print versions, ranks, hosts, cores and threads; run it under mpirun to see every rank."
SHARED = True


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    text = "compare every installed QPU backend and gradient method on random circuits (about a minute)"
    add_alone(command, "--gradients", text)


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Print the facts of every rank, or compare gradients; returns the exit code."""
    if args.gradients:
        return _gradients(args.json)
    from distqtrl.doctor.ranks import rank_facts
    from distqtrl.versions import versions

    mine = json.dumps({"rank": comm.rank, **comm.describe(), **rank_facts()}).encode()
    ranks = [json.loads(part) for part in allgather_bytes(comm, mine)]
    if comm.rank > 0:
        return 0
    if args.json:
        print_json({"versions": versions(), "ranks": ranks})
        return 0
    for name, version in versions().items():
        print(f"{name:<18} {version}")
    for r in ranks:
        print(
            f"rank {r['rank']} of {comm.size}: host {r['host']} with {r['on_host']}, pid {r['pid']}, "
            f"cores {r['cores']}, threads {r['threads']}, waits {r['waits']}, {r['mpi']}"
        )
    return 0


def _gradients(as_json: bool) -> int:
    """Compare backends and methods, a line as each is done and a table at the end; 1 where one differs."""
    from distqtrl.doctor import gradients

    found = []
    for row in gradients.rows():
        found.append(row)
        if not as_json and row.status in ("agrees", "differs"):
            unit = "standard errors" if row.sampled else "absolute"
            name = " ".join(part for part in (row.backend, row.device, row.result, row.method) if part)
            print(f"{name}: {row.status}, {row.error:.2g} ({unit}), up to n = {row.qubits}", flush=True)
    tell(as_json, gradients.as_json(found), f"\n{gradients.table(found)}")
    return int(any(row.status == "differs" for row in found))
