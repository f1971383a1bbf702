"""The process behind `CustomReward`: `python -m octo_megatron.grade.custom_process FILE MEMORY_BYTES`.

Loads FILE, then answers {"prompt", "text", "answer"} lines with {"parts": {name: number}} or {"error": text}.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load(path: Path) -> Callable[..., Any]:
    """The function `reward` of a file."""
    spec = importlib.util.spec_from_file_location("octo_custom_reward", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, "reward", None)
    if not callable(function):
        raise TypeError("it has no function reward(prompt, text, answer)")
    return function


def parts_of(value: Any) -> dict[str, float]:
    """A number becomes the part `custom`; every part must be a finite number."""
    parts = value if isinstance(value, dict) else {"custom": value}
    found = {str(name): float(number) for name, number in parts.items()}
    for name, number in found.items():
        if not math.isfinite(number):
            raise ValueError(f"part {name} is {number}")
    return found


def main() -> None:
    """Answer questions until the input closes."""
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the file prints must not be taken for an answer
    memory = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        function = load(Path(sys.argv[1]))
    except BaseException as error:
        reply.write(f"{type(error).__name__}: {error}\n".replace("\n", " ").strip() + "\n")
        reply.flush()
        raise
    reply.write("ready\n")
    reply.flush()
    for line in sys.stdin:
        try:
            said = {"parts": parts_of(function(**json.loads(line)))}
        except (Exception, MemoryError, RecursionError) as error:
            said = {"error": f"{type(error).__name__}: {error}"}  # type: ignore[dict-item]
        reply.write(json.dumps(said) + "\n")
        reply.flush()


if __name__ == "__main__":
    main()
