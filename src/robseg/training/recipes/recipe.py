"""What a recipe says: every number of a training, validated."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from robseg.attacks.catalogue import AttackConfig, find_attacks
from robseg.data.augment import Augmentation
from robseg.errors import UserError, unknown_name
from robseg.loading.model_folder import GIVEN, Normalisation
from robseg.loading.model_source import FORMS, TRAINABLE
from robseg.models.architectures import ARCHITECTURES
from robseg.training.inner_attack import AttackSettings
from robseg.training.methods import METHODS


def _located(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Let pydantic see what a section says of itself, so that it can name the key."""
    try:
        return handler(value)
    except UserError as error:
        raise ValueError(str(error).removesuffix(".")) from error


def _one_of(kind: str, known: Iterable[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in known:
            raise ValueError(str(unknown_name(kind, name, known)).removesuffix("."))
        return name

    return AfterValidator(check)


def _trainable(name: str) -> str:
    if name in ARCHITECTURES or name == GIVEN:
        return name
    form, colon, rest = name.partition(":")
    if not colon or not form or not rest:
        raise ValueError(str(unknown_name("architecture", name, ARCHITECTURES)).removesuffix("."))
    if form in FORMS and form not in TRAINABLE:
        raise ValueError(f"{name} is a program, which cannot be trained; give the network as package.module:factory")
    return name


def _normalisation(value: Any) -> Any:
    """Of the two forms it can have, say what is wrong with the one that was meant."""
    if not isinstance(value, Mapping):
        return value
    try:
        return Normalisation.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{key}: {first['msg']}; give mean and std as three numbers each") from None


def _fspath(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Text = Annotated[str, BeforeValidator(_fspath)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Criterion = Literal["clean.miou", "clean.aacc", "attacked.miou", "attacked.aacc"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class DataSettings(_Section):
    """train, validation: data as for `robseg.open_data`, where {root} stands for `root`. validation: null for none."""

    train: str
    validation: str | None = None
    root: Text | None = None


class ModelSettings(_Section):
    """The network at the first step.

    architecture: a name of `robseg.models.ARCHITECTURES`, or a foreign model as `robseg evaluate` takes it: hf:,
    torchvision:, smp: or package.module:factory; "given": the network that `robseg.train` was given.
    arguments: what the builder of one of robseg's architectures takes besides num_classes.
    backbone: a file with an ImageNet classifier, see `robseg.loading.backbone`. checkpoint: a file with weights of the
    whole network, or the folder of a training. Either as `robseg evaluate --checkpoint` takes it; null: fresh weights.
    normalisation: of the input: own (what a foreign model, the checkpoint or the backbone has, else none), none,
    imagenet, backbone (what the backbone's file holds), or {mean, std}.
    """

    architecture: Annotated[str, AfterValidator(_trainable)]
    arguments: dict[str, Any] = Field(default_factory=dict)
    backbone: Text | None = None
    checkpoint: Text | None = None
    normalisation: Annotated[
        Literal["own", "none", "imagenet", "backbone"] | Normalisation, BeforeValidator(_normalisation)
    ] = "own"

    @model_validator(mode="after")
    def _fits(self) -> ModelSettings:
        if self.normalisation == "backbone" and self.backbone is None:
            raise ValueError("normalisation is 'backbone' but no backbone is given; use own, imagenet or {mean, std}")
        if "num_classes" in self.arguments:
            raise ValueError("arguments must not hold num_classes, which comes from the data")
        if self.architecture not in ARCHITECTURES:
            for key in ("arguments", "backbone"):
                if getattr(self, key):
                    raise ValueError(
                        f"{key} is for robseg's architectures, not for '{self.architecture}'; leave it away, and make "
                        "the network as it should be in a function of yours"
                    )
        return self


class OptimiserSettings(_Section):
    """lr: the peak of the schedule. weight_decay: with decay_all of all parameters, else not of one-dimensional ones
    and those of norms. new_rate: how many times faster layers learn that are not in the backbone. momentum: of sgd;
    betas: of adamw. clip: the largest norm of the gradient, null for no limit."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)] = 1e-3
    weight_decay: NotNegative = 1e-2
    decay_all: bool = False
    new_rate: Positive = 1.0
    momentum: Share = 0.9
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip: Positive | None = None


class ScheduleSettings(_Section):
    """See `robseg.training.schedule`. warmup: share of all steps; floor: the rate that is decayed towards."""

    warmup: Share = 0.0
    warmup_ratio: Share = 1e-5
    power: Positive = 1.0
    floor: NotNegative = 0.0
    count_from: Literal[0, 1] = 0


class ValidationSettings(_Section):
    """times: how many passes over the validation set, evenly spread, the last at the end; 0 for none.

    attack: by name as for `robseg evaluate --attack`, null for clean images alone; eps: its radius in n/255.
    criterion: what the best model is best in; null: attacked.miou, of clean training and without attack clean.miou.
    batch_size: images at once in each process. samples: how many are kept as pictures.
    window: predict over sliding windows of so many pixels with stride 2/3, as `robseg evaluate --window`; null: over
    whole images.
    """

    times: int = Field(default=10, ge=0)
    attack: str | None = "pgd?steps=5&start=clean&keep=last"
    eps: float = Field(default=4.0, ge=0, le=255)
    criterion: Criterion | None = None
    batch_size: Count = 8
    samples: int = Field(default=4, ge=0)
    window: Count | None = None

    def config(self) -> AttackConfig | None:
        """The attack; UserError for an unknown one or several."""
        if self.attack is None:
            return None
        found = find_attacks([self.attack])
        if len(found) > 1:
            raise UserError(f"validation.attack is '{self.attack}', which is {len(found)} attacks; name a single one.")
        return found[0]

    @model_validator(mode="after")
    def _fits(self) -> ValidationSettings:
        self.config()
        if self.attack is None and self.criterion is not None and self.criterion.startswith("attacked"):
            raise ValueError(f"criterion is {self.criterion} but no attack is given")
        return self


class Recipe(_Section):
    """A training.

    epochs or steps: how long, one of them. batch_size: images of an update, whatever the devices.
    micro_batch: how many of them a process takes at a time, adding gradients up; null: all of its share at once.
    method: a name of `robseg.training.METHODS`; attack, aux_weight: see there. eps_warmup: share of all steps in which
    eps grows to its value. ema: decay of averaged weights, null for none; where there is one, the averaged weights are
    validated and saved. sync_batch_norm: statistics over all processes. precision, channels_last, compile: how, with
    `compile` a mode of torch.compile. workers: processes that decode, for each training process.
    checkpoint_minutes: between states on disk, 0 for one after each step. tensorboard: scalars and pictures for it.
    about, source, needs: for people; `needs` maps keys that the user has to give to what they are.
    """

    name: str
    about: str = ""
    source: str = ""
    needs: dict[str, str] = Field(default_factory=dict)
    data: DataSettings
    model: ModelSettings
    augmentation: Annotated[Augmentation, WrapValidator(_located)]
    method: Annotated[str, _one_of("training method", METHODS)] = "clean"
    attack: Annotated[AttackSettings, WrapValidator(_located)] = AttackSettings()
    eps_warmup: Share = 0.0
    aux_weight: NotNegative = 0.4
    optimiser: OptimiserSettings = OptimiserSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    steps: Annotated[int, Field(ge=1, le=10**9)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=10**6)]
    micro_batch: Count | None = None
    seed: int = 0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Precision = "fp32"
    channels_last: bool = True
    compile: Literal["default", "max-autotune-no-cudagraphs"] | None = None
    sync_batch_norm: bool = True
    workers: int = Field(default=0, ge=0)
    validation: Annotated[ValidationSettings, WrapValidator(_located)] = ValidationSettings()
    checkpoint_minutes: NotNegative = 10.0
    tensorboard: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch {self.micro_batch}")
        if self.schedule.floor > self.optimiser.lr:
            raise ValueError(f"schedule.floor {self.schedule.floor} is above optimiser.lr {self.optimiser.lr}")
        return self

    def total_steps(self, images: int) -> int:
        """Parameter updates on a training set of so many images; epochs are rounded to whole updates."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * images / self.batch_size))

    @property
    def criterion(self) -> Criterion:
        """The criterion of the best model, with its default."""
        if self.validation.criterion is not None:
            return self.validation.criterion
        return "clean.miou" if self.validation.attack is None or self.method == "clean" else "attacked.miou"
