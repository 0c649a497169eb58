"""Writing files so that a file under its final name is always whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from robseg.errors import UserError

UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENAMETOOLONG, errno.ENOENT
)  # fmt: skip

LOCK = ".lock"
"""The file in a run's folder by which the process that works there is known to others."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, missing permission or a file in the way into a UserError that names the path."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _full(error):
            raise UserError(
                f"No space is left on the disk while writing {path}; free some and give the same command again: "
                "it goes on where it stopped."
            ) from error
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            # What is in the way of a folder is said of the folder by its own name, as "File exists".
            in_the_way = error.errno in (errno.EEXIST, errno.ENOTDIR)
            reason = "a file is in the place of a folder" if in_the_way else error.strerror
            raise UserError(f"{path} cannot be written: {reason}; choose another folder with --out.") from error
        raise


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn missing permission, or a folder where a file should be, into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: torch.save stumbles over its own tail, and raises that instead."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """Inside the block no other process may work in the folder; UserError where one does. It is made where absent.

    The lock goes with the process, however that ends, and is none on file systems that have no locks.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Where the file system has no locks, a file in place of one would stay behind when the process is killed.
        lock = FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"Another process works in {folder}; wait for it or end it, or choose another --out."
            ) from None
        except NotImplementedError:
            pass
    try:
        yield
    finally:
        # While it is held: who opens the file afterwards makes a new one, who has it open finds it gone.
        if lock.is_locked:
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; when the block ends well the file is moved to `path`, else removed.

    Raises UserError where `path` is a folder, or as `disk_errors` says.
    """
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; name the file to write.")
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
