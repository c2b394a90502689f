"""Files of tensors: safetensors with a JSON description and a SHA-256 over both; whole or not there at all.

No pickle. A file that is truncated, of another kind or changed after it was written is refused when read.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from distqtrl.errors import UserError, shortened
from distqtrl.files import reading
from distqtrl.files.replace import replace

DIGITS = 64  # of a SHA-256 in hexadecimal
MOST = 200  # characters of what a library says
Tensors = dict[str, np.ndarray]
Shape = tuple[int | None, ...]


def write(path: Path, about: dict[str, Any], tensors: Tensors) -> None:
    """Write the file and flush it to the disk; on an error (OSError) nothing is left and an older file stays."""
    text = json.dumps(about, sort_keys=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    # one key: safetensors orders several at random, and equal content shall be equal bytes
    replace(path, save(tensors, metadata={"distqtrl": _digest(text, tensors) + text}))


def read(path: Path, format: str, remedy: str) -> tuple[dict[str, Any], Tensors]:
    """The description and tensors; raises UserError, ending in the remedy, unless the file is as it was written."""
    try:
        reading.regular(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not iterable)
    except Exception as error:  # a file that is not ours can fail in any way, such as a dtype NumPy lacks
        cause = " ".join(str(error).removeprefix("Error while deserializing header: ").split())
        raise UserError(f"cannot read {path} ({cause[:MOST]}): {remedy}") from None
    digest, text = metadata.get("distqtrl", "")[:DIGITS], metadata.get("distqtrl", "")[DIGITS:]
    if digest != _digest(text, tensors):
        problem = "was changed after it was written (SHA-256 differs)" if text else "was not written by distqtrl"
        raise UserError(f"{path} {problem}: {remedy}")
    try:
        about = reading.parsed(text)
    except ValueError as error:
        raise UserError(f"cannot read the description in {path} ({error}): {remedy}") from None
    found = about.get("format") if isinstance(about, dict) else None
    if found != format:
        shown = found if isinstance(found, str) and len(found) < DIGITS else shortened(found)
        raise UserError(f"{path} is a '{shown}' file, not '{format}': {remedy}")
    return about, tensors


def kind(path: Path) -> str | None:
    """The format that a file's description tells, without a look at its tensors; None where it tells none."""
    try:
        reading.regular(path)
        with safe_open(path, framework="numpy") as file:
            about = reading.parsed((file.metadata() or {}).get("distqtrl", "")[DIGITS:])
    except Exception:  # as in ``read``, which then says why
        return None
    found = about.get("format") if isinstance(about, dict) else None
    return found if isinstance(found, str) else None


def check(tensors: Tensors, wanted: Mapping[str, tuple[type, Shape]]) -> None:
    """Raise ValueError unless these are the tensors: names, dtypes, shapes (None: any length), all numbers finite."""
    for name in sorted(tensors.keys() ^ wanted.keys()):
        problem = "is missing" if name in wanted else "does not belong there"
        raise ValueError(f"tensor {shortened(name)} {problem}")
    for name, (dtype, shape) in wanted.items():
        tensor = tensors[name]
        if tensor.dtype != dtype:
            raise ValueError(f"{name} holds {tensor.dtype}, not {np.dtype(dtype)}")
        if len(tensor.shape) != len(shape) or any(
            n is not None and n != m for n, m in zip(shape, tensor.shape, strict=True)
        ):
            fit = ", ".join("N" if n is None else str(n) for n in shape)
            raise ValueError(f"{name} has the shape {tensor.shape}, not ({fit})")
        check_finite(name, tensor)


def check_finite(name: str, tensor: np.ndarray) -> None:
    """Raise ValueError where a number is not finite."""
    if np.issubdtype(tensor.dtype, np.floating) and not np.isfinite(tensor).all():
        raise ValueError(f"{name} holds a number that is not finite")


def _digest(text: str, tensors: Tensors) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
