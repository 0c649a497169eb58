"""Where robseg keeps what it made or fetched, beside the folders the user names."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """$ROBSEG_HOME, or ~/.cache/robseg: the demo's models, weights put there by name, counts of data sets."""
    named = os.environ.get("ROBSEG_HOME")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "robseg"
