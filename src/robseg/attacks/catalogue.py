"""Attacks by name: single ones, and the published ensembles as lists of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from torch import Tensor

from robseg.attacks.apgd import Radius, apgd
from robseg.attacks.objectives import OBJECTIVES
from robseg.attacks.pgd import Keep, pgd
from robseg.attacks.problem import AttackResult, Model
from robseg.errors import UserError, unknown_name
from robseg.spec import parse_spec


@dataclass(frozen=True)
class AttackConfig:
    """One attack with everything that decides its result but model, image, radius and seed.

    name: what it is called in records and tables, and the stem of its files.
    method: "apgd", or "pgd" with a constant step.
    alpha: PGD's step in the images' units; None: eps itself (FGSM).
    tracked, radius: APGD only. keep: PGD only. The rest as in `robseg.apgd` and `robseg.pgd`.

    Raises UserError for unknown names, values out of range, and what the method does not have.
    """

    name: str
    method: Literal["apgd", "pgd"]
    objective: str
    steps: int
    random_start: bool = True
    restarts: int = 1
    tracked: str | None = None
    radius: Radius = "constant"
    alpha: float | None = None
    keep: Keep = "best"

    def __post_init__(self) -> None:
        for objective in filter(None, (self.objective, self.tracked)):
            if objective not in OBJECTIVES:
                raise unknown_name("objective", objective, OBJECTIVES)
        if not self.name or self.name == "clean":
            raise UserError(f"An attack cannot be called '{self.name}'; give it another name.")
        for key, allowed in (("method", ("apgd", "pgd")), ("radius", get_args(Radius)), ("keep", get_args(Keep))):
            if getattr(self, key) not in allowed:
                raise UserError(
                    f"{key} of the attack '{self.name}' is '{getattr(self, key)}'; it must be {' or '.join(allowed)}."
                )
        for key in ("steps", "restarts"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} of the attack '{self.name}' is {getattr(self, key)}; it must be at least 1.")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise UserError(f"alpha of the attack '{self.name}' is {self.alpha}; it must be finite and above 0.")
        idle = {"alpha": None, "keep": "best"} if self.method == "apgd" else {"tracked": None, "radius": "constant"}
        for key, value in idle.items():
            if getattr(self, key) != value:
                raise UserError(
                    f"{key} of the attack '{self.name}' changes nothing: {self.method.upper()} has none; leave it out."
                )

    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        *,
        eps: float,
        threat: str = "linf",
        class_weights: Tensor | None = None,
        seed: int = 0,
        image_ids: Sequence[str] | None = None,
        ignore_index: int = 255,
    ) -> AttackResult:
        """Attack a batch; shapes, units and errors as in `robseg.apgd`."""
        common: dict[str, Any] = {
            "eps": eps, "objective": self.objective, "steps": self.steps, "threat": threat,
            "random_start": self.random_start, "restarts": self.restarts, "class_weights": class_weights,
            "seed": seed, "image_ids": image_ids, "ignore_index": ignore_index,
        }  # fmt: skip
        if self.method == "apgd":
            return apgd(model, images, labels, tracked=self.tracked, radius=self.radius, **common)
        alpha = eps if self.alpha is None else self.alpha
        return pgd(model, images, labels, alpha=alpha, keep=self.keep, **common)


def _sea_member(objective: str) -> AttackConfig:
    return AttackConfig(
        f"apgd-{objective}", "apgd", objective, steps=300, tracked="ce", radius="reduced"
    )  # arXiv 2306.12941


ATTACKS: dict[str, AttackConfig] = {
    # 2306.12941: each is a member of SEA where its objective is.
    **{f"apgd-{objective}": _sea_member(objective) for objective in OBJECTIVES},
    **{
        f"pgd-{objective}": AttackConfig(f"pgd-{objective}", "pgd", objective, 20, alpha=0.01)
        for objective in OBJECTIVES
    },
    "fgsm": AttackConfig("fgsm", "pgd", "ce", 1, random_start=False, keep="last"),
    # The test of DDC-AT (2003.06555) within 0.03.
    "bim": AttackConfig("bim", "pgd", "ce", 2, random_start=False, alpha=0.01, keep="last"),
    "pgd": AttackConfig("pgd", "pgd", "ce", 20, alpha=0.01),
    "segpgd": AttackConfig("segpgd", "pgd", "segpgd", 20, alpha=0.01, keep="last"),
    "cospgd": AttackConfig("cospgd", "pgd", "cospgd", 20, alpha=0.01, keep="last"),
}
"""Attacks that are published or usual; PGD's step of 0.01 is the one of 2003.06555 and 2207.12391."""

ENSEMBLES: dict[str, tuple[str, ...]] = {
    "sea": ("apgd-mce-bal", "apgd-mce", "apgd-js"),
    "sea-v2": ("apgd-mce-bal", "apgd-mce", "apgd-js"),
    "sea-v1": ("apgd-mce", "apgd-segpgd", "apgd-js", "apgd-msl"),
}
"""The Segmentation Ensemble Attack of arXiv 2306.12941v2 (also as plain "sea") and of v1."""

_OPTIONS = {"steps": int, "restarts": int, "radius": str, "tracked": str, "objective": str, "keep": str, "alpha": float}


def find_attacks(names: Sequence[str | AttackConfig], steps: int | None = None) -> tuple[AttackConfig, ...]:
    """The attacks that names stand for, in order, each once.

    names: of ATTACKS or ENSEMBLES, with options as in "pgd-js?steps=50&alpha=2&start=clean" (alpha in n/255;
        steps, restarts, radius, tracked, objective, keep; start=random or clean), or ready configurations.
    steps: replaces the steps of all of them (of one-step attacks never).

    Raises UserError for an unknown name (with the near ones), option or value, and for two attacks of one name.
    """
    found: list[AttackConfig] = []
    for name in names:
        found += [name] if isinstance(name, AttackConfig) else _by_name(name)
    if steps is not None:
        if steps < 1:
            raise UserError(f"steps must be at least 1, not {steps}.")
        found = [config if config.steps == 1 else replace(config, steps=steps) for config in found]
    unique = tuple(dict.fromkeys(found))
    labels = [config.name for config in unique]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"Two different attacks are called '{label}'; give one of them another name.")
    if not unique:
        raise UserError("No attack is given; name at least one, such as 'sea'.")
    return unique


def protocol_of(attacks: Sequence[AttackConfig], norm: str) -> tuple[str, list[str]]:
    """The published protocol that comes nearest to `attacks`, and in what they deviate from it (empty: in nothing).

    Lists of attacks that are no published ensemble are called "custom".
    """
    names = tuple(config.name for config in attacks)
    for title, members in (("SEA (2306.12941v2)", ENSEMBLES["sea-v2"]), ("SEA (2306.12941v1)", ENSEMBLES["sea-v1"])):
        if names == members:
            changed: dict[str, list[str]] = {}
            for config in attacks:
                published, ours = asdict(ATTACKS[config.name]), asdict(config)
                for key in (key for key in ours if ours[key] != published[key]):
                    changed.setdefault(f"{key} is {ours[key]}, not {published[key]}", []).append(config.name)
            deviations = [f"norm is {norm}, not linf"] if norm != "linf" else []
            for text, of in changed.items():
                deviations.append(text if len(of) == len(attacks) else f"{text} ({', '.join(of)})")
            return title, deviations
    return "custom", []


def _by_name(text: str) -> list[AttackConfig]:
    spec = parse_spec(text)
    if spec.root is not None:
        raise UserError(f"The attack '{text}' takes no ':'; options follow a '?', as in pgd?steps=50.")
    members = ENSEMBLES.get(spec.name, (spec.name,))
    if members[0] not in ATTACKS:
        raise unknown_name("attack", spec.name, [*ENSEMBLES, *ATTACKS])
    return [_with_options(ATTACKS[member], text, spec.options) for member in members]


def _with_options(config: AttackConfig, text: str, options: dict[str, str]) -> AttackConfig:
    if not options:
        return config
    changes: dict[str, Any] = {}
    for key, value in options.items():
        if key == "start":
            changes["random_start"] = _one_of(text, key, value, ("random", "clean")) == "random"
        elif key not in _OPTIONS:
            raise UserError(f"The attack '{text}' has an unknown option '{key}'; known: {', '.join(_OPTIONS)}, start.")
        else:
            try:
                changes[key] = _OPTIONS[key](value)
            except ValueError:
                raise UserError(f"The option {key}={value} of the attack '{text}' is not a number.") from None
    _one_of(text, "radius", changes.get("radius", "constant"), ("constant", "reduced"))
    _one_of(text, "keep", changes.get("keep", "best"), ("best", "last"))
    for key in ("steps", "restarts"):
        if changes.get(key, 1) < 1:
            raise UserError(f"The option {key} of the attack '{text}' must be at least 1.")
    if changes.get("restarts", config.restarts) > 1 and not changes.get("random_start", config.random_start):
        raise UserError(f"The attack '{text}' asks for restarts without a random start, which would all be the same.")
    if "alpha" in changes:
        if not 0 < changes["alpha"] < math.inf:
            raise UserError(f"The option alpha of the attack '{text}' must be above 0 and finite (in n/255).")
        changes["alpha"] /= 255
    # The options stay visible wherever the attack is named.
    suffix = ",".join(f"{key}={value}" for key, value in options.items())
    return replace(config, name=f"{config.name}[{suffix}]", **changes)


def _one_of(text: str, key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"The option {key}={value} of the attack '{text}' must be {' or '.join(allowed)}.")
    return value
