"""The small language in which the command line names data and attacks: NAME[:ROOT][?key=value&key=value]."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote

from robseg.errors import UserError


@dataclass(frozen=True)
class Spec:
    """A parsed NAME[:ROOT][?key=value&...]."""

    name: str
    root: str | None = None
    options: dict[str, str] = field(default_factory=dict)


def parse_spec(text: str) -> Spec:
    """Take 'camvid:CamVid?split=val' apart.

    %XX escapes are decoded in values and in the root, so that a '?' or '&' can be written as %3F and %26.
    Raises UserError for an empty name, an option without '=' or one given twice.
    """
    head, _, query = text.partition("?")
    name, colon, root = head.partition(":")
    if not name:
        raise UserError(f"'{text}' names nothing; expected NAME[:ROOT][?key=value&...].")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise UserError(f"The option '{part}' of '{text}' is not of the form key=value.")
        if key in options:
            raise UserError(f"The option '{key}' of '{text}' is given twice.")
        options[key] = unquote(value)
    return Spec(name, unquote(root) if colon else None, options)
