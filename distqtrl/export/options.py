"""What an export is asked for."""

import re
from dataclasses import dataclass
from pathlib import Path

from distqtrl.errors import UserError
from distqtrl.export.verilog import synthesis
from distqtrl.export.verilog.folded import Folding
from distqtrl.quantize.formats import CHANNEL, Bits

BITS, PER = Bits(core=4), CHANNEL  # of a policy that is quantized after training, unless it is said


@dataclass(frozen=True)
class Options:
    """How a policy is exported and proven; raises UserError for a part that is not known."""

    targets: tuple[str, ...]  # of the table in targets.py
    # of a policy that was not trained with quantization:
    bits: Bits | None = None  # BITS
    per: str | None = None  # whose scales are its own, "channel" or "tensor"; PER
    calibration: Path | None = None  # recorded observations (N, O) in a .npy file; the policy plays its own episodes
    # of Verilog:
    folding: Folding | None = None  # of the folded core; chosen from the widest layer
    part: str | None = None  # of synthesis.PARTS, which the folded core has to fit
    # of the proof:
    vectors: int = 1_000_000  # observations that every target is compared on
    episodes: int = 100  # that the C code drives, and that returns are compared over
    implement: bool = False  # also simulate the netlists, place and route
    energy: tuple[float, float] | None = None  # static watts, and joules per toggle
    joules: bool = False  # also measure the energy of an action of the C code on this machine
    imports: bool = False  # whether the policy file may name any module for its environment
    limit_s: float | None = None  # that a tool may take; its own limit

    def __post_init__(self) -> None:
        if self.part is not None and self.part not in synthesis.PARTS:
            raise UserError(f"--part {self.part}: known parts are {', '.join(synthesis.PARTS)}")
        if self.joules and "c" not in self.targets:
            raise UserError(f"--joules measures the C code: add c to --target {','.join(self.targets)}")


def folding(text: str) -> Folding:
    """The folding of a text such as 32x4; raises UserError.

    >>> folding("32x4")
    Folding(lanes=32, columns=4)
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text)
    if match is None or int(match[1]) % int(match[2]):
        raise UserError(f"--parallel {text}: write LANESxCOLUMNS, lanes a multiple of columns, such as 32x4")
    return Folding(int(match[1]), int(match[2]))
