"""Reading the YAML files that people write: recipes and what is kept of runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from robseg.errors import UserError


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError where there is none or it cannot be read, with the line."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), PeoplesLoader)
    except OSError as error:
        raise UserError(f"The file '{file}' cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{where} is not valid YAML: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a mapping of keys to values.")
    return content


class WrittenFloat(float):
    """A number that, as a text, is what was written: a folder may be called 1e3 or 2.10."""

    text: str

    def __new__(cls, value: float, text: str) -> WrittenFloat:
        """The number `value`, written as `text`."""
        number = super().__new__(cls, value)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


class PeoplesLoader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number; 010, 1_0, 1:30, on and dates are texts; keys are texts, and one given
    twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def construct_written_float(self, node: Any) -> WrittenFloat:
        return WrittenFloat(self.construct_yaml_float(node), node.value)


PeoplesLoader.yaml_implicit_resolvers = {}
for _kind, _pattern, _letters in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", "<<", "<"),
):
    PeoplesLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), list(_letters))
PeoplesLoader.add_constructor("tag:yaml.org,2002:float", PeoplesLoader.construct_written_float)
yaml.SafeDumper.add_representer(WrittenFloat, yaml.SafeDumper.represent_float)
