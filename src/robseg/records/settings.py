"""What an evaluation was asked to do, in the form in which it is validated, stored and compared."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from robseg.attacks.catalogue import AttackConfig
from robseg.errors import UserError
from robseg.models.wrapper import Precision

SaveImages = Literal["no", "float", "8bit"]


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """The resolved settings of an evaluation; nothing else but model and data decides its result.

    eps: radii in n/255, ascending (with norm "l2": the Euclidean length of the perturbation on the 0..255 scale).
    attacks: in the order in which they run. limit: only the first so many images, None for all.
    window: the model sees windows of so many pixels with stride 2/3, `long_side` scales images for it first.
    save_images: keep all adversarial images, exactly ("float") or rounded to 8 bits, and then judged as rounded.
    batch_size, device: how, not what; the batch size may change when a run goes on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    checkpoint: str | None = None
    data: str
    train_data: str | None = None
    classes: int | None = None
    eps: tuple[float, ...] = Field(min_length=1)
    norm: Literal["linf", "l2"] = "linf"
    attacks: tuple[AttackConfig, ...] = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    precision: Precision = "fp32"
    save_images: SaveImages = "no"
    window: int | None = Field(default=None, ge=1)
    long_side: int | None = Field(default=None, ge=1)
    mean: tuple[_Finite, _Finite, _Finite] | None = None
    std: tuple[_Spread, _Spread, _Spread] | None = None
    device: str = "cpu"
    batch_size: int = Field(default=8, ge=1)

    @field_validator("eps")
    @classmethod
    def _sort_radii(cls, eps: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted({float(e) for e in eps}))

    @model_validator(mode="after")
    def _radii_fit(self) -> Settings:
        for e in self.eps:
            if not (math.isfinite(e) and e >= 0) or (self.norm == "linf" and e > 255):
                limits = "between 0 and 255 (n/255)" if self.norm == "linf" else "a finite number of 0 or more"
                raise ValueError(f"eps must be {limits}, not {e:g}")
        return self


def make_settings(**values: Any) -> Settings:
    """Validate settings; UserError names the first setting that is wrong, and why."""
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {reason}." if where else f"{reason}.") from None


def first_difference(stored: Any, asked: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key (dotted) at which two nested settings differ, with both values; None where they are equal."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for name in [*asked, *(k for k in stored if k not in asked)]:
            found = first_difference(stored.get(name), asked.get(name), f"{key}.{name}".lstrip("."))
            if found:
                return found
        return None
    return None if stored == asked else (key, stored, asked)
