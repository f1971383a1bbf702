"""math-verify in processes of their own, with a deadline and a memory limit.

math-verify's own time limit is a signal: it works in the main thread only and cannot interrupt one long
operation of C code such as 10**10**10. A process can be ended.
"""

from __future__ import annotations

import sys

from octo_megatron.grade.limited_process import LimitedProcess

DEADLINE_SECONDS = 4.0
"""For one comparison; math-verify's own limits inside come first where they can."""


class Verifier:
    """One math-verify process. Thread-safe."""

    def __init__(self) -> None:
        self._process = LimitedProcess(
            [sys.executable, "-m", "octo_megatron.grade.verifier_process"],
            DEADLINE_SECONDS,
            "math-verify does not start: `python -m octo_megatron.grade.verifier_process` shows why, "
            "`make env` installs it",
        )

    @property
    def pid(self) -> int | None:
        """Of the running process, None where there is none."""
        return self._process.pid

    def equal(self, found: str, answer: str) -> bool:
        """Whether math-verify takes `found` for `answer`; False too when it crashes or exceeds its limits.

        Raises:
            UserError: the process does not come up (math-verify is missing or broken).
        """
        return bool(self._process.ask([found, answer]))

    def close(self) -> None:
        """End the process."""
        self._process.close()
