"""Writing files so that a file under its final name is always whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robseg.errors import UserError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, missing permission or a file in the way into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"No space is left on the disk while writing {path}; free some and give the same command again: "
                "it goes on where it stopped."
            ) from error
        if isinstance(error, (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)) or (
            error.errno == errno.EROFS
        ):
            raise UserError(f"{path} cannot be written: {error.strerror}; choose another folder with --out.") from error
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; when the block ends well the file is moved to `path`, else removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
