"""What a learner's saved state must look like before it is taken over."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

COUNTS = (".count", ".m2_O", ".m2_S", ".exp_avg_sq", ".step", "num_steps", "num_observed")  # never negative


def check(
    state: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    parameters: Sequence[Tensor],
    optional: Mapping[str, Tensor],
) -> None:
    """Raise ValueError unless names, types, shapes and signs are those of a learner whose state is ``like``.

    Moments of the optimizer may be there, or not, for every one of the parameters; as may what is ``optional``.
    """
    wanted = {name: _form(t) for name, t in like.items() if not name.startswith("optimizer.") and name not in optional}
    wanted |= {name: _form(t) for name, t in optional.items() if name in state}
    moved = {name.split(".")[1] for name in state if name.startswith("optimizer.")}
    for index, p in enumerate(parameters):
        if str(index) in moved:
            moments = {"step": torch.zeros(1), "exp_avg": p, "exp_avg_sq": p}
            wanted |= {f"optimizer.{index}.{key}": _form(t) for key, t in moments.items()}
    for name in sorted(state.keys() ^ wanted.keys()):
        raise ValueError(f"{name} {'is missing' if name in wanted else 'does not belong there'}")
    for name, (dtype, shape) in wanted.items():
        if _form(state[name]) != (dtype, shape):
            found = f"{state[name].dtype} {tuple(state[name].shape)}"
            raise ValueError(f"{name} is {found}, this run's is {dtype} {shape}")
        if name.endswith(COUNTS) and bool((state[name] < 0).any()):
            raise ValueError(f"{name} is negative")


def _form(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    """Type and shape in a file, where a number is a vector of one."""
    return tensor.dtype, tuple(tensor.shape) or (1,)
