"""Random integer programs: every size, every number of bits, per tensor and per channel, every head, tables."""

import numpy as np
from hypothesis import strategies as st

from distqtrl.quantize.program import Argmax, Lookup, Matmul, Program, Scale


def program(seed: int, most: int = 64, factored: bool = False, layers: int = 0) -> Program:
    """One program; equal seeds give equal programs. factored: it ends in several choices. layers: 0 = drawn."""
    rng = np.random.default_rng(seed)
    width, bits = int(rng.integers(1, most + 1)), int(rng.integers(1, 9))
    inputs, ops = width, []
    ops.append(scale(rng, width, 16, int(rng.integers(1, 9))))
    for _ in range(layers or int(rng.integers(1, 4))):
        wide = int(rng.integers(1, most + 1))
        top = (1 << (bits - 1)) - 1
        drawn = rng.choice([-1, 1], (wide, width)) if bits == 1 else rng.integers(-top, top + 1, (wide, width))
        ops.append(Matmul(drawn))
        tabled = rng.random() < 0.3
        levels = int(rng.integers(1, 11 if tabled else 9))
        ops.append(scale(rng, wide, int(np.abs(drawn).sum(1).max() * 255).bit_length() + 1, levels))
        if tabled:
            table = rng.integers(0, 256, 1 << levels)
            ops.append(Lookup(np.sort(table // 16) if rng.random() < 0.5 else table))
        width = wide
    if factored:
        ops.append(choices(rng, width))
    elif rng.random() < 0.5:
        ops.append(Argmax(int(rng.integers(0, 2))))
    else:
        ops.append(Scale(rng.integers(-3000, 3001, width), rng.integers(-(10**5), 10**5, width), 4, -32768, 32767))
    return Program(tuple(rng.integers(-3, 13, inputs).tolist()), 16, tuple(ops))


def choices(rng: np.random.Generator, num: int) -> Argmax:
    """One or more factors, of one number or more each, that start anywhere."""
    cuts = np.sort(rng.choice(num - 1, int(rng.integers(0, min(num, 6))), replace=False)) + 1 if num > 1 else []
    sizes = np.diff([0, *cuts, num])
    return Argmax(tuple(rng.integers(-9, 10, len(sizes)).tolist()), tuple(sizes.tolist()))


def scale(rng: np.random.Generator, width: int, bits: int, levels: int) -> Scale:
    """Numbers of so many bits to levels of so many bits, mostly inside the range."""
    shift = max(bits + 12 - levels, 0)
    factor = (
        rng.integers(1 << 12, 1 << 15, width) if rng.random() < 0.7 else np.full(width, int(rng.integers(1, 1 << 15)))
    )
    if rng.random() < 0.1:
        factor = -factor
    middle = int((1 << levels) * rng.random()) << shift
    return Scale(factor, middle + rng.integers(-(1 << shift), (1 << shift) + 1, width), shift, 0, (1 << levels) - 1)


programs = st.builds(program, st.integers(0, 2**32 - 1), factored=st.booleans())


def observations(program: Program, num: int, seed: int = 0) -> np.ndarray:
    """Integer observations, extremes included."""
    rng = np.random.default_rng(seed)
    x_BO = rng.integers(-32768, 32768, (num, len(program.input_fraction_O)))
    x_BO[: num // 4] //= 64
    x_BO[0], x_BO[1] = -32768, 32767
    return x_BO
