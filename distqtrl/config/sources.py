"""Where a configuration comes from: presets, files, flags."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from distqtrl.config.run import Config, field_names, validated
from distqtrl.errors import UserError, lookup, nearest, shortened
from distqtrl.files import reading
from distqtrl.files.places import is_there


def with_flags(config: Config, flags: Mapping[str, str | list[str]]) -> Config:
    """The configuration with single fields replaced by flags ``stage.field`` given as text.

    >>> with_flags(Config(), {"circuit.layers": "5", "policy.hidden": ["32", "16"]}).policy.hidden
    (32, 16)
    """
    values = config.model_dump()
    for key, text in flags.items():
        stage, field = _place(key)
        values[stage][field] = _parsed(key, text, values[stage][field])
    return validated(values, "flags", text=True)


def with_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with single fields ``stage.field`` replaced by values of Python; raises UserError.

    >>> with_changes(Config(), {"circuit.layers": 5, "policy.hidden": [32, 16]}).policy.hidden
    (32, 16)
    """
    if not isinstance(changes, Mapping):
        raise UserError(f"changes = {shortened(changes)}: give a table of keys and values, such as {{'train.seed': 1}}")
    values = config.model_dump()
    for key, value in changes.items():
        stage, field = _place(key)
        values[stage][field] = value
    return validated(values, "changes")


def _place(key: str) -> tuple[str, str]:
    """Stage and field of a key; raises UserError that names the nearest key."""
    if key not in field_names():
        raise UserError(f"unknown key {shortened(key)}: {nearest(str(key), field_names())}")
    stage, _, field = key.partition(".")
    return stage, field


def _parsed(key: str, text: str | list[str], current: Any) -> Any:
    if key in ("circuit.gates", "qpu.per_rank"):  # lists of lists or tables
        return _json(key, text, '[["ry", 0], ["x", 1, 0]]' if key == "circuit.gates" else '[{"shots": 1024}, {}]')
    if isinstance(current, tuple):
        words = [text] if isinstance(text, str) else text
        return [word for part in words for word in part.replace(",", " ").split() if word != "none"]
    if isinstance(text, list):
        if len(text) != 1:
            raise UserError(f"flags: {key} takes one value, got {len(text)}: {' '.join(text)}")
        text = text[0]
    if isinstance(current, dict):
        return _json(key, text, '{"name": 1}')
    return text


def _json(key: str, text: str | list[str], example: str) -> Any:
    text = text if isinstance(text, str) else " ".join(text)
    try:
        return reading.parsed(text)
    except ValueError as error:
        cause = str(error).removeprefix("it is not JSON: ")
        raise UserError(f"flags: {key} = {shortened(text)} is not JSON ({cause}); write --{key} '{example}'") from None


def presets() -> dict[str, str]:
    """Names of the presets that are shipped, each with the first line of its file."""
    folder = resources.files("distqtrl") / "presets"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text().splitlines()[0].lstrip("# ") for f in files}


def preset(name: str) -> Config:
    """A shipped preset; raises UserError that names the nearest one, or the way to use a file or run of that name."""
    try:
        values = _preset_values(name)
    except UserError:
        if not is_there(name):
            raise
        remedy = f"use --config {name} (train --resume {name} to resume a run), or distqtrl.read in Python"
        raise UserError(f"preset {name} is the name of a file or folder: {remedy}") from None
    return validated(_extended(values), f"preset {name}")


def parent(name: str) -> str | None:
    """The preset that a preset extends."""
    return _preset_values(name).get("extends")


def _preset_values(name: str) -> dict[str, Any]:
    lookup("preset", name, presets())
    return reading.toml((resources.files("distqtrl") / "presets" / f"{name}.toml").read_text())


def _extended(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those of the preset named by ``extends`` below them."""
    own = {key: value for key, value in values.items() if key != "extends"}
    if "extends" not in values:
        return own
    below = _extended(_preset_values(str(values["extends"])))
    for stage, fields in own.items():
        below[stage] = {**below.get(stage, {}), **fields} if isinstance(fields, dict) else fields
    return below


DAMAGED = "restore it, or choose another --run"  # of a run's config.json


def load(path: Path, remedy: str = "give a run's directory, or a file of TOML or JSON") -> Config:
    """The configuration of a TOML or JSON file or of a run; raises UserError when it cannot be read or is not valid."""
    if (path / "config.json").is_file():
        path = path / "config.json"
    try:
        text = reading.text(path)
        values = reading.parsed(text) if path.suffix.lower() == ".json" else reading.toml(text)
    except ValueError as error:
        raise UserError(f"cannot read configuration {path}: {error}: {remedy}") from None
    if not isinstance(values, dict):
        raise UserError(f"cannot read configuration {path}: it holds no table of stages")
    try:
        values = _extended(values)
    except UserError as error:
        raise UserError(f"{path}: extends: {error}") from None
    return validated(values, str(path))
