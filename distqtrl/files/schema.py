"""What is read of a file as a model: types exactly as they are written, bounds, known keys; or refused in one line."""

import json
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from distqtrl.errors import UserError, shortened
from distqtrl.files import reading

LARGE = 2**53  # what counts steps or seconds stays below: exact in floating point, too
Count = Annotated[int, Field(ge=0, le=LARGE)]
Several = Annotated[int, Field(ge=1, le=LARGE)]
Word = Annotated[str, Field(min_length=1, max_length=1000)]
Sha256 = Annotated[str, Field(pattern=re.compile(r"\A[0-9a-f]{64}\Z"))]
Kind = TypeVar("Kind")
Model = TypeVar("Model", bound="Record")


class Record(BaseModel):
    """Base of the models of files: frozen, nothing is converted, unknown keys refused, no NaN or infinity.

    A model whose keys are all needed, and which means the same with more, may ignore more: a newer version's.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def distinct(values: Sequence[Any]) -> Sequence[Any]:
    """The values as they are; raises ValueError where one occurs twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{shortened(next(x for x in values if values.count(x) > 1))} occurs twice")
    return values


Names = Annotated[tuple[Word, ...], Field(max_length=10_000), AfterValidator(distinct)]


def document(
    path: Path, model: type[Model], what: str, remedy: str, infinite: bool = False
) -> tuple[Model, dict[str, Any]]:
    """What a JSON file holds, as the model and as it is there, with keys that the model ignores.

    Raises UserError, which says what the file should be (``what``), the reason and the remedy. infinite: as in
    ``reading.parsed``.
    """
    try:
        text = reading.text(path)
        values = reading.parsed(text, infinite)
        return model.model_validate_json(text), values
    except ValidationError as error:
        raise UserError(f"{path} is not a {what} ({reading.reason(error)}): {remedy}") from None
    except ValueError as error:
        raise UserError(f"cannot read {path} ({error}): {remedy}") from None


def checked(kind: type[Kind], values: Any) -> Kind:
    """A model or dataclass of JSON values that are parsed already; raises ValueError with the reason."""
    try:
        if issubclass(kind, BaseModel):
            return kind.model_validate_json(json.dumps(values), strict=True)
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ValueError(reading.reason(error)) from None


def complete(kind: type[Kind], values: Any, where: str, wanted: AbstractSet[str]) -> Kind:
    """The model of a table (``checked``) whose keys ``wanted`` are all there: a default might mean something else."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} = {shortened(values)}: Input should be an object")
    for key in sorted(wanted - values.keys()):
        raise ValueError(f"{where} lacks the key '{key}'")
    try:
        return checked(kind, values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
