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


class PeoplesLoader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, dates are texts, and a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


PeoplesLoader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
PeoplesLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
