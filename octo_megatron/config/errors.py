"""What the command line tells in one line: a user's mistake, and a worker of ours that broke."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake of the person at the terminal: one line that says what is wrong, where, and what to change.

    The command line prints it as `octo: error: ...` and exits with code 2; it never shows a traceback.
    """


class WorkFailed(Exception):
    """A worker process or rank broke and it was not the user's mistake; one line that names it, exit code 1."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises UserError naming the file when the system refuses to read it: it is missing, another user's, ..."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
