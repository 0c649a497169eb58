"""From the name of a recipe and a few changed keys to a Recipe: files, inheritance, and errors that name both."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ValidationError

from robseg.errors import UserError, unknown_name
from robseg.loading.model_folder import is_foreign
from robseg.records.yaml_files import PeoplesLoader, read_yaml
from robseg.training.recipe import Recipe

FOLDER = Path(__file__).with_name("recipes")
ABSTRACT = "_"
"""Recipes of this first letter are there to be inherited from: they are incomplete and not listed."""

OVERRIDES = "the command line"
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
        _refuse_unknown(content, origin)
        if any(key in content for key in LENGTHS):
            merged = {key: value for key, value in merged.items() if key not in LENGTHS}
        _drop_of_another_architecture(merged, content)
        _merge(merged, content, origin, origins)
    merged.setdefault("name", name)
    missing = [key for key in merged.get("needs", {}) if not _has(merged, key)]
    if missing and complete:
        what = " and ".join(f"{key} ({merged['needs'][key]})" for key in missing)
        raise UserError(f"The recipe '{name}' needs {what}; give {' '.join(f'{key}=...' for key in missing)}.")
    return _validated(merged, origins, name)


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
            raise UserError(f"The key '{key}' is given twice on {OVERRIDES}.")
        try:
            pairs[key] = yaml.load(value, PeoplesLoader)
        except yaml.YAMLError as error:
            raise UserError(f"The value of '{text}' is no YAML; quote it: {key}='\"...\"'.") from error
    return pairs


def _find(name: str, beside: Path) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        file = (beside / Path(name).expanduser()).resolve()
        if not file.is_file():
            raise UserError(f"There is no recipe '{name}'; `robseg recipes` lists those that come with robseg.")
        return file
    file = FOLDER / f"{name}.yaml"
    if not file.is_file():
        raise unknown_name("recipe", name, recipe_names())
    return file


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
    nested: dict[str, Any] = {}
    for key, value in pairs.items():
        inner = nested
        *sections, last = key.split(".")
        for section in sections:
            inner = inner.setdefault(section, {})
        if isinstance(value, Mapping) and isinstance(inner.get(last), dict):
            inner[last] |= value
        else:
            inner[last] = dict(value) if isinstance(value, Mapping) else value
    return nested


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


def _drop_of_another_architecture(merged: dict[str, Any], content: Mapping[str, Any]) -> None:
    """Forget what was said of an architecture that a later layer replaces."""
    before, now = merged.get("model"), content.get("model")
    if not isinstance(before, dict) or not isinstance(now, Mapping):
        return
    replaced, wanted = before.get("architecture"), now.get("architecture")
    if wanted is None or replaced in (None, wanted):
        return
    before.pop("arguments", None)
    if isinstance(wanted, str) and is_foreign(wanted) and isinstance(merged.get("needs"), dict):
        merged["needs"].pop("model.backbone", None)


def _has(content: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


def _keys(section: Any) -> dict[str, Any]:
    """{key: section or None} of a model or dataclass; of a section's own keys the value is what it is made of."""
    return {name: _section(hint) for name, hint in get_type_hints(section).items() if not name.startswith("model_")}


def _section(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        return next((found for part in get_args(hint) if (found := _section(part))), None)
    return hint if isinstance(hint, type) and (issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint)) else None


def _all_keys(section: Any, at: str = "") -> list[str]:
    found = []
    for key, inner in _keys(section).items():
        found += [f"{at}{key}", *(_all_keys(inner, f"{at}{key}.") if inner else ())]
    return found


def _refuse_unknown(content: Any, origin: str, section: Any = Recipe, at: str = "") -> None:
    known = _keys(section)
    for key, value in content.items():
        if key not in known:
            name = f"{at}{key}"
            every = _all_keys(Recipe)
            near = [other for other in every if other.rpartition(".")[2] == key]
            near = near or [f"{at}{k}" for k in difflib.get_close_matches(key, known, n=3, cutoff=0.6)]
            near = near or difflib.get_close_matches(name, every, n=3, cutoff=0.7)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(f'{at}{k}' for k in known)}."
            raise UserError(f"{origin}: unknown key '{name}'; {hint}")
        if known[key] and isinstance(value, Mapping):
            _refuse_unknown(value, origin, known[key], f"{at}{key}.")


def _validated(merged: dict[str, Any], origins: Mapping[str, str], name: str) -> Recipe:
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        # Members of a union stand in the path as if they were keys.
        parts = [str(part) for part in first["loc"]]
        while parts and not _has(merged, ".".join(parts)) and first["type"] != "missing":
            parts.pop()
        key = ".".join(parts)
        origin = next((origins[k] for k in _upwards(key) if k in origins), f"The recipe '{name}'")
        if first["type"] == "missing":
            raise UserError(f"{origin}: the key '{key}' is missing.") from None
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if first["type"] == "value_error":
            raise UserError(f"{origin}: {f'{key}: ' if key else ''}{reason}.") from None
        if first["type"] in ("model_type", "dataclass_type", "dict_type"):
            reason = "a mapping of keys to values"
        reason = reason.partition(", unable to parse")[0]
        raise UserError(f"{origin}: {key} is {first['input']!r}; it must be {reason}.") from None


def _upwards(key: str) -> Iterable[str]:
    """a.b.c, a.b, a."""
    while key:
        yield key
        key = key.rpartition(".")[0]
