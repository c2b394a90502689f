"""One seed -> independent counter-based streams keyed by (purpose, global indices).

A stream belongs to a thing of the whole job (an environment, an episode, an update), never to a rank,
so R ranks x E environments and 1 rank x R*E environments draw the same numbers; and none has to be saved:
the key is the state. Counter-based generator: Philox 4x64 (Salmon et al., SC 2011).
"""

import numpy as np

PURPOSES = (
    *("initialise", "control", "episode", "action", "minibatch", "validation", "evaluation", "shot", "spsa"),
    *("calibration", "replay", "noise"),  # new ones at the end: the position is the key
)
WEIGHTS, ANGLES, CRITICS = range(3)  # first indices of "initialise", and what is drawn with each


def stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """The random stream of one purpose and index; equal keys give equal streams.

    >>> a, b = stream(0, "action", 3), stream(0, "action", 3)
    >>> bool(a.random() == b.random())
    True
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, *index)))


def integer(seed: int, purpose: str, *index: int) -> int:
    """A 31-bit seed for a library that wants one (an environment's reset, torch's generator)."""
    return int(_sequence(seed, purpose, *index).generate_state(1)[0] >> 1)


def _sequence(seed: int, purpose: str, *index: int) -> np.random.SeedSequence:
    # the length is part of the key, because numpy pads short keys with zeros; seeds are below 2**32, one word
    return np.random.SeedSequence((seed, PURPOSES.index(purpose), len(index), *index))
