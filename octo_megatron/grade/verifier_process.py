"""The process behind `Verifier`: reads [found, answer] as a JSON line, writes true or false."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys

MEMORY_BYTES = 2 << 30
_INNER_SECONDS = 2


def main() -> None:
    """Answer questions until the input closes."""
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    from math_verify import parse, verify  # costs a second, and only this process pays it

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    reply.write("ready\n")
    reply.flush()
    for line in sys.stdin:
        found, answer = json.loads(line)
        try:
            wanted = parse("\\boxed{" + answer + "}", parsing_timeout=_INNER_SECONDS)
            given = parse("\\boxed{" + found + "}", parsing_timeout=_INNER_SECONDS)
            same = bool(wanted and given and verify(wanted, given, timeout_seconds=_INNER_SECONDS))
        except (Exception, MemoryError, RecursionError):
            same = False
        reply.write(json.dumps(same) + "\n")
        reply.flush()


if __name__ == "__main__":
    main()
