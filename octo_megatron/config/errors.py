"""The one exception for a user's mistake."""


class UserError(Exception):
    """A mistake of the person at the terminal: one line that says what is wrong, where, and what to change.

    The command line prints it as `octo: error: ...` and exits with code 2; it never shows a traceback.
    """
