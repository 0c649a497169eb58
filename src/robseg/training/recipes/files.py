"""From the name of a recipe and a few changed keys to a Recipe: files, inheritance, and errors that name both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from robseg.errors import UserError, unknown_name
from robseg.loading.model_folder import is_foreign
from robseg.records.training_run import RECIPE
from robseg.records.yaml_files import PeoplesLoader, read_yaml
from robseg.training.inner_attack import AttackSettings
from robseg.training.recipes.check import check_keys, has_key, validated
from robseg.training.recipes.recipe import Recipe

FOLDER = Path(__file__).parent
ABSTRACT = "_"
"""Recipes of this first letter are there to be inherited from: they are incomplete and not listed."""

OVERRIDES = "the keys given"
DEFAULTS = {"name": AttackSettings.name}
"""What holds of those keys that others depend on where no recipe says them."""

LENGTHS = ("epochs", "steps")
"""Two ways of saying the same: what is said last holds."""


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml") if not file.stem.startswith(ABSTRACT))


def load_recipe(
    recipe: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | Iterable[str] = (), *, complete: bool = True
) -> Recipe:
    """The recipe, with what it inherits and with some keys changed.

    recipe: a name of `recipe_names`, the path of a YAML file, or the content of one. overrides: {key: value} with
    dotted or nested keys, or texts "key=value" whose values are YAML.
    complete: False lets keys be absent that the user of the recipe has to give.

    Raises UserError that names file and key for files that are missing or no YAML, keys that are unknown (with the near
    ones) or given twice, values out of range (with what is allowed), and keys that the recipe needs.
    """
    if isinstance(recipe, Mapping):
        layers, name = _layers(dict(recipe), "the given recipe", Path(), ()), str(recipe.get("name", "given"))
    else:
        file = _find(str(recipe), Path())
        layers, name = _layers(read_yaml(file), str(file), file.parent, (file,)), file.stem
    pairs = dict(overrides) if isinstance(overrides, Mapping) else parse_overrides(overrides)
    layers.append((_nested(pairs), OVERRIDES))
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for content, origin in layers:
        check_keys(content, origin)
        if any(key in content for key in LENGTHS):
            merged = {key: value for key, value in merged.items() if key not in LENGTHS}
        _forget_replaced(merged, content)
        _merge(merged, content, origin, origins)
    merged.setdefault("name", name)
    missing = _missing(merged)
    if missing and complete:
        what = " and ".join(f"{key} ({merged['needs'][key]})" for key in missing)
        raise UserError(f"The recipe '{name}' needs {what}; give {' '.join(f'{key}=...' for key in missing)}.")
    return validated(merged, origins, name)


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML, which `load_recipe` reads back."""
    content = recipe.model_dump(mode="json")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """["optimiser.lr=1e-4", "epochs=2"] as {dotted key: value}; UserError for a text of another form or a key twice."""
    pairs: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            raise UserError(f"'{text}' is not of the form key=value, such as optimiser.lr=1e-4.")
        if key in pairs:
            raise UserError(f"The key '{key}' is given twice; give it once.")
        try:
            pairs[key] = yaml.load(value, PeoplesLoader)
        except yaml.YAMLError as error:
            raise UserError(f"The value of '{text}' is no YAML; quote it: {key}='\"...\"'.") from error
    return pairs


def _find(name: str, beside: Path) -> Path:
    if name in [file.stem for file in FOLDER.glob("*.yaml")]:
        return FOLDER / f"{name}.yaml"
    try:
        file = (beside / Path(name).expanduser()).resolve()
        if file.is_file():
            return file
        is_training = (file / RECIPE).is_file()
    except (OSError, RuntimeError, ValueError):
        is_training = False  # No name that a file can have.
    if is_training:
        raise UserError(
            f"'{name}' is the folder of a training; give --resume --out {name} to go on with it, or its recipe "
            f"{name}/{RECIPE} for another."
        )
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise UserError(f"There is no recipe '{name}'; `robseg recipes` lists those that come with robseg.")
    raise unknown_name("recipe", name, recipe_names())


def _layers(content: dict[str, Any], origin: str, beside: Path, above: tuple[Path, ...]) -> list[tuple[Any, str]]:
    """What the recipe inherits, from the root on, and its own keys last; each with the file it stands in."""
    parents = content.pop("inherits", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f"{origin}: inherits is {parents!r}; it must be the name of a recipe, or a list of names.")
    layers: list[tuple[Any, str]] = []
    for parent in parents:
        try:
            file = _find(parent, beside)
        except UserError as error:
            raise UserError(f"{origin}: inherits: {error}") from error
        if file in above:
            raise UserError(f"{origin}: inherits '{parent}', which inherits from it in turn.")
        # What a parent is called and is about is not handed down.
        inherited = {key: value for key, value in read_yaml(file).items() if key not in ("name", "about")}
        layers += _layers(inherited, str(file), file.parent, (*above, file))
    return [*layers, (content, origin)]


def _nested(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1, "a": {"c": 2}} as {"a": {"b": 1, "c": 2}}; UserError for a key that is said twice."""
    nested: dict[str, Any] = {}
    for key, value in pairs.items():
        *sections, last = str(key).split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"{OVERRIDES}: '{key}' is said, and '{section}' as well; say one of them.")
        content = dict(value) if isinstance(value, Mapping) else value
        if last not in inner:
            inner[last] = content
            continue
        before = inner[last]
        if not (isinstance(content, dict) and isinstance(before, dict)) or content.keys() & before.keys():
            raise UserError(f"{OVERRIDES}: '{key}' is said twice; say it once.")
        before |= content
    return nested


def _missing(merged: Mapping[str, Any]) -> list[str]:
    """The keys that the recipe needs and that are not there; its folder of data only if its data lie there."""
    needs, data = merged.get("needs"), merged.get("data")
    found = [key for key in needs if not has_key(merged, str(key))] if isinstance(needs, Mapping) else []
    texts = [data.get(part) for part in ("train", "validation")] if isinstance(data, Mapping) else []
    rooted = any(isinstance(text, str) and "{root}" in text for text in texts)
    return [key for key in found if key != "data.root" or rooted]


def _merge(
    into: dict[str, Any], content: Mapping[str, Any], origin: str, origins: dict[str, str], at: str = ""
) -> None:
    for key, value in content.items():
        name = f"{at}{key}"
        origins[name] = origin
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value, origin, origins, f"{name}.")
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _forget_replaced(merged: dict[str, Any], content: Mapping[str, Any]) -> None:
    """Forget what was said of an architecture or an attack that a later layer replaces by another."""
    before, wanted = _replaced(merged, content, "model", "architecture")
    if before is not None:
        before.pop("arguments", None)
        if isinstance(wanted, str) and is_foreign(wanted) and isinstance(merged.get("needs"), dict):
            merged["needs"].pop("model.backbone", None)
    before, wanted = _replaced(merged, content, "attack", "name")
    if before is not None:
        before.pop("alpha", None)
        if wanted == "fgsm":
            before["steps"] = 1


def _replaced(
    merged: Mapping[str, Any], content: Mapping[str, Any], section: str, key: str
) -> tuple[dict[str, Any] | None, Any]:
    """A section of which a layer changes the key that all others depend on, and what to; None where it does not."""
    before, now = merged.get(section), content.get(section)
    if not isinstance(before, dict) or not isinstance(now, Mapping):
        return None, None
    wanted = now.get(key)
    if wanted is None or before.get(key, DEFAULTS.get(key)) in (None, wanted):
        return None, None
    return before, wanted
