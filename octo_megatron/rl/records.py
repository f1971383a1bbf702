"""Durable records of a step's phases: a run that is killed anywhere goes on with the phase it was in.

NODE/phases/step_00007/drawn_0.json        the prompts that were drawn (round 0; dynamic sampling has more)
NODE/phases/step_00007/answers_0.jsonl.zst  the answers to them: tokens, log-probabilities, versions
NODE/phases/step_00007/rewards_0.json      the parts of their rewards
NODE/phases/step_00007/carried.jsonl.zst   answers that step 6 began and did not end (partial_tokens)
NODE/phases/step_00007/update.json         the step's row of metrics, when its updates and refit were done
NODE/rollouts/step_00007.jsonl.zst         prompt, answer, reward, versions of every answer: for people

Each is written aside and renamed. What an update makes durable is a checkpoint: after a kill the updates since the
newest checkpoint are computed again, from the recorded answers and rewards (`checkpoint_interval: 1` leaves none to
repeat). Records of steps behind a checkpoint are removed; the rollouts stay.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import zstandard

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import read_json, write_json
from octo_megatron.parallel.world import World
from octo_megatron.rl.rollout import Answers, Sample


class StepRecords:
    """Reads and writes the records of one node; rank 0 touches the files, every rank gets what they say."""

    def __init__(self, folder: Path, world: World):
        """`folder`: the node's."""
        self._phases, self._rollouts, self._world = folder / "phases", folder / "rollouts", world

    def drawn(self, step: int, round_: int, chosen: list[int], first: int) -> None:
        """The prompts of a round are drawn: problems `chosen`, the `first`-th of the stream and those after it.

        Raises:
            UserError: an earlier process drew other prompts for it, so its answers belong to another run.
        """
        fact = {"step": step, "round": round_, "first": first, "problems": chosen}
        path = self._of(step) / f"drawn_{round_}.json"
        problem = None
        if self._world.is_first:
            if path.is_file() and read_json(path) != fact:
                problem = f"{path} names other prompts than this config draws; remove {path.parent} to sample them anew"
            else:
                write_json(path, fact)
        problem = self._world.broadcast_object(problem)
        if problem:
            raise UserError(problem)

    def answers(self, step: int, round_: int) -> Answers | None:
        """The recorded answers of a round, None where it has to be sampled. Collective."""
        path = self._of(step) / f"answers_{round_}.jsonl.zst"
        found = None
        if self._world.is_first and path.is_file():
            facts, *rows = read_zst(path)
            found = Answers([Sample(**row) for row in rows], facts["seconds"])
        return self._world.broadcast_object(found)

    def has_answers(self, step: int) -> bool:
        """Whether an earlier process has recorded the first answers of a step. Collective."""
        path = self._of(step) / "answers_0.jsonl.zst"
        return bool(self._world.broadcast_object(self._world.is_first and path.is_file()))

    def keep_answers(self, step: int, round_: int, answers: Answers) -> None:
        rows = [{"seconds": answers.seconds}, *map(dataclasses.asdict, answers.samples)]
        if self._world.is_first:
            write_zst(self._of(step) / f"answers_{round_}.jsonl.zst", rows)

    def carried(self, step: int) -> list[Sample]:
        """Unfinished groups that the step before left to `step`. Collective."""
        path = self._of(step) / "carried.jsonl.zst"
        there = self._world.is_first and path.is_file()
        found = [Sample(**row) for row in read_zst(path)] if there else []
        return list(self._world.broadcast_object(found))

    def keep_carried(self, step: int, samples: list[Sample]) -> None:
        if self._world.is_first:
            write_zst(self._of(step) / "carried.jsonl.zst", map(dataclasses.asdict, samples))

    def rewards(self, step: int, round_: int) -> dict[str, Any] | None:
        """What `keep_rewards` was given, None where the answers have to be graded. Collective."""
        path = self._of(step) / f"rewards_{round_}.json"
        found = read_json(path) if self._world.is_first and path.is_file() else None
        return self._world.broadcast_object(found)

    def keep_rewards(self, step: int, round_: int, rewards: dict[str, Any]) -> None:
        if self._world.is_first:
            write_json(self._of(step) / f"rewards_{round_}.json", rewards)

    def finished(self, step: int, row: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
        """The step's updates and refit are done. `rows`: what people will look at."""
        if self._world.is_first:
            write_zst(self._rollouts / f"step_{step:05d}.jsonl.zst", rows)
            write_json(self._of(step) / "update.json", row)

    def covered(self, step: int) -> None:
        """A checkpoint holds the weights after `step`: nothing up to it will be asked for again."""
        if self._world.is_first and self._phases.is_dir():
            for folder in self._phases.iterdir():
                if folder.name.startswith("step_") and int(folder.name.removeprefix("step_")) <= step:
                    shutil.rmtree(folder)

    def _of(self, step: int) -> Path:
        return self._phases / f"step_{step:05d}"


def write_zst(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines, compressed, durable: the old or the whole new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with temporary.open("wb") as file:
            file.write(zstandard.ZstdCompressor(level=3).compress(text.encode("utf-8", "surrogatepass")))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; free some space and run again") from error


def read_zst(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of `write_zst`.

    Raises:
        UserError: the file is damaged.
    """
    try:
        raw = zstandard.ZstdDecompressor().decompress(path.read_bytes())
        # only \n ends a line: U+2028 and the like may stand inside strings
        return [json.loads(line) for line in raw.decode("utf-8", "surrogatepass").split("\n")[:-1]]
    except (zstandard.ZstdError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it to make it again") from error


def shown(samples: Sequence[Sample], prompts: Sequence[str], answers: Sequence[str]) -> list[dict[str, Any]]:
    """Samples as rows for people; `prompts` and `answers` are those of their problems."""
    return [
        {
            "prompt": prompt,
            "text": s.text,
            "answer": answer,
            "reward": s.reward,
            "parts": s.parts,
            "tokens": len(s.token_ids),
            "finished": s.finished,
            "problem": s.problem,
            "weight_version": s.weight_version,
            "versions": s.versions,
        }
        for s, prompt, answer in zip(samples, prompts, answers, strict=True)
    ]
