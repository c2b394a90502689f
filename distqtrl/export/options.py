"""What an export is asked for."""

from dataclasses import dataclass
from pathlib import Path

from distqtrl.export.verilog.folded import Folding
from distqtrl.quantize import calibrate
from distqtrl.quantize.formats import Bits

BITS, PER = Bits(core=4), calibrate.CHANNEL  # of a policy that is quantized after training, unless it is said


@dataclass(frozen=True)
class Options:
    """How to export: targets; bits, scales' sharing and recorded observations (none: BITS, PER, the policy records its
    own) of a policy that was not trained with quantization; folding, part; vectors and episodes of the proof; whether
    to simulate netlists, place and route; static watts and joules per toggle; whether
    the policy file may name any module for its environment; seconds that a tool may take (none: its own limit)."""

    targets: tuple[str, ...]
    bits: Bits | None
    per: str | None
    calibration: Path | None
    folding: Folding | None
    part: str | None
    vectors: int
    episodes: int
    implement: bool
    energy: tuple[float, float] | None
    imports: bool = False
    limit_s: float | None = None
