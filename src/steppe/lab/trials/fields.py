"""What the fields of several models have in common."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Model(BaseModel):
    """Unknown fields are refused, values are never changed, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def as_number(value: object) -> object:
    """Read a text as a number if it is one: to YAML 1.1, 1e-3 (without a point) is a text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number: TypeAlias = Annotated[float, Field(strict=True), BeforeValidator(as_number)]
Fraction: TypeAlias = Annotated[Number, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=10**9, strict=True)]
