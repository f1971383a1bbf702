"""What the command line tells in one line: a user's mistake, and a worker of ours that broke."""


class UserError(Exception):
    """A mistake of the person at the terminal: one line that says what is wrong, where, and what to change.

    The command line prints it as `octo: error: ...` and exits with code 2; it never shows a traceback.
    """


class WorkFailed(Exception):
    """A worker process or rank broke and it was not the user's mistake; one line that names it, exit code 1."""
