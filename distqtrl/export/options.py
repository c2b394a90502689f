"""What an export is asked for."""

from dataclasses import dataclass
from pathlib import Path

from distqtrl.export.verilog.folded import Folding
from distqtrl.quantize import calibrate
from distqtrl.quantize.formats import Bits

BITS, PER = Bits(core=4), calibrate.CHANNEL  # of a policy that is quantized after training, unless it is said


@dataclass(frozen=True)
class Options:
    """How a policy is exported and proven."""

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
    imports: bool = False  # whether the policy file may name any module for its environment
    limit_s: float | None = None  # that a tool may take; its own limit
