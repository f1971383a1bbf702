"""A reward written by the user: a Python file, run in a process with limits."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from octo_megatron.config.errors import UserError
from octo_megatron.grade.limited_process import LimitedProcess


@dataclass(frozen=True)
class Verdict:
    """What the file said of one answer."""

    parts: dict[str, float]
    error: str = ""
    """Why there are no parts; empty where there are."""


class CustomReward:
    """Asks `reward(prompt, text, answer)` of a file; it returns a number or named numbers."""

    def __init__(self, file: Path, deadline_seconds: float, memory_bytes: int):
        """Raises UserError: there is no such file."""
        if not file.is_file():
            raise UserError(f"reward.file: no file at {file}")
        self._file, self._deadline = file, deadline_seconds
        command = [sys.executable, "-m", "octo_megatron.grade.custom_process", str(file), str(memory_bytes)]
        self._process = LimitedProcess(
            command,
            deadline_seconds,
            f"reward.file: {file} does not load; `{' '.join(command[1:])}` shows why",
        )

    def __call__(self, prompt: str, text: str, answer: str) -> Verdict:
        """Never raises for what the file does: a crash, a hang or a wrong type is an error in the verdict.

        Raises:
            UserError: the file cannot be loaded, or has no function `reward`.
        """
        reply = self._process.ask({"prompt": prompt, "text": text, "answer": answer})
        if reply is None:
            return Verdict({}, f"no reply within {self._deadline:g} s, or the process died (memory limit?)")
        return Verdict(reply.get("parts", {}), reply.get("error", ""))

    def close(self) -> None:
        """End the process."""
        self._process.close()
