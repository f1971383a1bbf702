"""The reward of one answer: 1.0 when its last `\\boxed{...}` equals the right answer, else 0.0."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from octo_megatron.grade.quick import quick_verdict
from octo_megatron.grade.verifier import Verifier

_TEXT_LIMIT = 100_000
"""Characters at the end of a text in which the marked answer is looked for."""
_ANSWER_LIMIT = 1_000
"""Characters of a marked answer; a longer one is wrong unseen."""
_TOKENS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_verifiers = [Verifier()]


def grade(text: str, answer: str) -> float:
    """1.0 or 0.0. `answer`: the right one, without a mark. Neither format nor length counts.

    What needs no computer algebra is compared at once (`quick`); everything else goes to math-verify in a process
    of its own with limits, so a hostile answer costs its own reward and nothing else. Verdicts are remembered by
    (marked answer, right answer).
    """
    found = marked_answer(text)
    if found is None or len(found) > _ANSWER_LIMIT:
        return 0.0
    return float(_verdict(found, answer))


def grade_all(pairs: Sequence[tuple[str, str]], workers: int = 1) -> list[float]:
    """`grade` of each (text, answer), with up to `workers` math-verify processes side by side."""
    while len(_verifiers) < workers:
        _verifiers.append(Verifier())
    if workers == 1:
        return [grade(text, answer) for text, answer in pairs]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda pair: grade(*pair), pairs))


def marked_answer(text: str) -> str | None:
    """What stands in the last complete `\\boxed{...}`, None where there is none. Linear in the text."""
    opened: list[int | None] = []
    best: tuple[int, int] | None = None
    text = text[-_TEXT_LIMIT:]
    for token in _TOKENS.finditer(text):
        mark = token.group()
        if mark == "{":
            opened.append(None)
        elif mark == "}":
            start = opened.pop() if opened else None
            if start is not None and (best is None or start > best[0]):
                best = (start, token.start())
        elif mark.endswith("{") and mark.startswith("\\boxed"):
            opened.append(token.end())
    return text[best[0] : best[1]].strip() if best else None


@functools.lru_cache(maxsize=50_000)
def _verdict(found: str, answer: str) -> bool:
    if found == answer.strip():
        return True
    quick = quick_verdict(found, answer)
    if quick is not None:
        return quick
    # whichever: each has a lock of its own
    verifier = _verifiers[hash((found, answer)) % len(_verifiers)]
    return verifier.equal(found, answer)
