"""Problem sets: questions with checkable answers, `{"id", "prompt", "answer"}` a line."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import read_json_lines
from octo_megatron.config.schema import ProblemSetConfig
from octo_megatron.data import builtin, read
from octo_megatron.data.row import Row
from octo_megatron.data.template import TemplateError, render


@dataclass(frozen=True)
class Problem:
    """One question. `id` is taken from the prompt alone, so it is the same in every set and every run."""

    id: str
    prompt: str
    answer: str


def problem_id(prompt: str) -> str:
    """First 16 hexadecimal digits of the sha256 of the prompt."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def load_problems(path: Path) -> list[Problem]:
    """A prepared set, in its order.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return [Problem(**row) for row in read_json_lines(path)]
    except FileNotFoundError:
        raise UserError(
            f"problem set {path} is missing: run the lineage again, it is made before the nodes"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"problem set {path} is damaged ({error}): delete it and run the lineage again"
        ) from None


def dump_problems(problems: list[Problem]) -> str:
    """The text that `load_problems` reads."""
    return "".join(json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in problems)


def make_problems(name: str, config: ProblemSetConfig, seed: int) -> list[Problem]:
    """The set that a config describes; of problems with equal prompts the first stays.

    Raises:
        UserError: the file is missing, a row does not fit (`file:line: cause`), or there are too few.
    """
    if config.builtin:
        made = builtin.problems(config.builtin, config.count, seed)
        return [Problem(problem_id(one.prompt), one.prompt, one.answer) for one in made]
    problems: dict[str, Problem] = {}
    for place, row in islice(read.rows(Path(str(config.file))), config.offset, None):
        problem = _from_row(name, config, place, row)
        problems.setdefault(problem.id, problem)
        if len(problems) == config.count:
            break
    if not problems or len(problems) < config.count:
        raise UserError(
            f"problems.{name}: {config.file} holds {len(problems)} different problems after the "
            f"first {config.offset} rows, count asks for {config.count or 'at least 1'}"
        )
    return list(problems.values())


def _from_row(name: str, config: ProblemSetConfig, place: str, row: Row) -> Problem:
    try:
        prompt, answer = render(config.prompt, row), render(config.answer, row)
        prompt.encode()
    except TemplateError as error:
        raise UserError(f"{place}: problems.{name}: {error}") from None
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: not valid Unicode text ({error.reason} at {error.start})") from None
    if config.answer_pattern:
        try:
            found = re.search(config.answer_pattern, answer)
            answer = found.group(1) if found else ""
        except (re.error, IndexError) as error:
            raise UserError(
                f"problems.{name}.answer_pattern '{config.answer_pattern}': {error}; it needs one group (...)"
            ) from None
        if not found:
            raise UserError(
                f"{place}: problems.{name}: answer_pattern '{config.answer_pattern}' is nowhere in the answer"
            )
    if not answer.strip():
        raise UserError(f"{place}: problems.{name}: the answer is empty")
    return Problem(problem_id(prompt), prompt, answer.strip())
