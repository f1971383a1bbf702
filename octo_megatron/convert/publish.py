"""A folder made whole or not at all: written aside, proven, and only then given its name."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octo_megatron.config.errors import UserError
from octo_megatron.convert.journal import Share


def aside_of(target: Path) -> Path:
    """Where a target is made: `.NAME.partial` beside it. What a killed conversion left there is gone on with."""
    return target.with_name(f".{target.name}.partial")


def refuse_existing(target: Path) -> None:
    """Raises UserError when there is something at `target`."""
    if target.exists():
        raise UserError(f"{target} exists already; remove it or choose another name")


def check_room(target: Path, needed: int) -> None:
    """Raises UserError when the disk has not `needed` bytes free, counting what lies aside already as free."""
    parent = next(parent for parent in target.absolute().parents if parent.exists())
    aside = aside_of(target)
    there = sum(file.stat().st_blocks * 512 for file in aside.rglob("*")) if aside.is_dir() else 0
    free = shutil.disk_usage(parent).free + there
    if free < needed:
        raise UserError(
            f"{target} needs {needed / 1e9:.2f} GB and {parent} has {free / 1e9:.2f} GB left; free some space or "
            "choose another folder"
        )


def reserve(file: int, size: int) -> None:
    """Give an open file its length, and its room on the disk where the file system can.

    What is written then need not look for room block by block. `os.posix_fallocate` writes to every block where the
    file system cannot.

    Raises:
        OSError: there is no such room.
    """
    os.ftruncate(file, size)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(file, 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        number = ctypes.get_errno()
        # for any other reason (a file system that cannot, a signal) there is writing itself
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(number, os.strerror(number))


@contextmanager
def made_aside(target: Path, share: Share) -> Iterator[Path]:
    """The folder to write into; the first rank deletes it when what is done with it fails.

    A kill leaves it, and the next try goes on.

    Raises:
        UserError: the target exists, or writing failed (a full disk).
    """
    aside = aside_of(target)
    try:
        if share.is_first:
            refuse_existing(target)
            aside.parent.mkdir(parents=True, exist_ok=True)
        yield aside
    except OSError as error:
        _clean(aside, share)
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    except Exception:
        _clean(aside, share)
        raise


def _clean(aside: Path, share: Share) -> None:
    if share.is_first:
        shutil.rmtree(aside, ignore_errors=True)
