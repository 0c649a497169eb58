"""What is said of recipes that are wrong: the file, the key, and what would be right."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from robseg.errors import UserError
from robseg.training.recipes.recipe import Recipe


def check_keys(content: Any, origin: str, section: Any = Recipe, at: str = "") -> None:
    """UserError for a key that recipes do not have, with the near ones, and for true or false where a number belongs.

    content: of a recipe, or of its section `at`, which says only some keys; origin: the file it stands in.
    """
    known = _keys(section)
    for key, value in content.items():
        name = f"{at}{key}"
        if key not in known:
            raise UserError(f"{origin}: unknown key '{name}'; {_hint(name, str(key), known, at)}")
        inner = _section(known[key])
        if inner is not None and isinstance(value, Mapping):
            check_keys(value, origin, inner, f"{name}.")
        elif isinstance(value, bool) and not _takes(known[key], bool):
            raise UserError(f"{origin}: {name} is {_shown(value)}; it must be something else than true or false.")


def validated(merged: dict[str, Any], origins: Mapping[str, str], name: str) -> Recipe:
    """The recipe with these keys; UserError for the first that is wrong. origins: {dotted key: file it stands in}."""
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = _place(first, merged)
        origin = next((origins[k] for k in _upwards(key) if k in origins), f"The recipe '{name}'")
        raise UserError(f"{origin}: {_complaint(first, key, merged)}") from None


def has_key(content: Any, key: str) -> bool:
    """Whether nested keys hold a dotted one."""
    try:
        _at(content, key)
    except KeyError:
        return False
    return True


def _hint(name: str, key: str, known: Mapping[str, Any], at: str) -> str:
    every = _all_keys(Recipe)
    near = [other for other in every if other.rpartition(".")[2] == key]
    near = near or [f"{at}{k}" for k in difflib.get_close_matches(key, known, n=3, cutoff=0.6)]
    near = near or difflib.get_close_matches(name, every, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(f'{at}{k}' for k in known)}."


def _complaint(first: ErrorDetails, key: str, merged: Mapping[str, Any]) -> str:
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "missing":
        if not str(first["loc"][-1]).isdigit():
            return f"the key '{key}' is missing."
        return f"{key} is {_shown(_at(merged, key))}; it has too few values."
    if first["type"] == "value_error":
        text = f"{key}: {reason}" if key else reason
        return text if text.endswith("?") else f"{text}."
    if first["type"] in ("model_type", "dataclass_type", "dict_type"):
        reason = "a mapping of keys to values"
    elif first["type"] == "tuple_type":
        reason = "a list of values"
    reason = reason.partition(", unable to parse")[0]
    return f"{key} is {_shown(first['input'])}; it must be {reason}."


def _place(first: ErrorDetails, merged: Mapping[str, Any]) -> str:
    """The dotted key of an error. Members of a union and places in a list stand in its path as if they were keys."""
    parts = [str(part) for part in first["loc"]]
    if first["type"] == "missing" and not parts[-1].isdigit():
        return ".".join(parts)
    while parts and not has_key(merged, ".".join(parts)):
        parts.pop()
    return ".".join(parts)


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            raise KeyError(key)
        content = content[part]
    return content


def _shown(value: Any) -> str:
    """A value as a recipe would have it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, float) else repr(value)


def _keys(section: Any) -> dict[str, Any]:
    """{key: its type} of a model or dataclass."""
    return {name: hint for name, hint in get_type_hints(section).items() if not name.startswith("model_")}


def _section(hint: Any) -> Any:
    """The model or dataclass that a key is made of, if it is a section."""
    if get_origin(hint) in (Union, UnionType):
        return next((found for part in get_args(hint) if (found := _section(part))), None)
    return hint if isinstance(hint, type) and (issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint)) else None


def _takes(hint: Any, kind: type) -> bool:
    return hint in (kind, Any) or any(_takes(part, kind) for part in get_args(hint))


def _all_keys(section: Any, at: str = "") -> list[str]:
    found = []
    for key, hint in _keys(section).items():
        inner = _section(hint)
        found += [f"{at}{key}", *(_all_keys(inner, f"{at}{key}.") if inner else ())]
    return found


def _upwards(key: str) -> Iterable[str]:
    """a.b.c, a.b, a."""
    while key:
        yield key
        key = key.rpartition(".")[0]
