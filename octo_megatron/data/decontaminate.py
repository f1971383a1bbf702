"""`octo decontaminate`: which training rows hold evaluation items, by many workers; a report and the clean rows.

The rules are those of `contamination.py`; the workers, pieces and bad rows those of `octo tokenize`. OUT gets the
clean rows as JSON lines, one file a piece, fit to be tokenised. The report is one JSON file, and beside it
stands a line for every match.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import write_json, write_text
from octo_megatron.data import read
from octo_megatron.data.contamination import Index
from octo_megatron.data.distribute import Run, prepare_folder
from octo_megatron.data.documents import TextOptions, document
from octo_megatron.data.pieces import Piece, Plan, Records, find_files, make_plan, missing
from octo_megatron.data.row import Row
from octo_megatron.data.template import TemplateError, render
from octo_megatron.data.work import PieceRows

_QUESTION_FIELDS = ("question", "problem", "prompt", "text")
_INDEX = "index.npz"
_REPORT_EVERY = 200


@dataclass(frozen=True)
class TextSet:
    """Files of evaluation items, or of training items that are known to be none: `PATH` or `PATH={template}`."""

    path: str
    template: str | None = None
    """Format string over a row; None: the first of question, problem, prompt and text that a row has as text."""

    @classmethod
    def parse(cls, spec: str) -> TextSet:
        """From the command line."""
        found = re.fullmatch(r"(.*?)=(.*\{.*)", spec, re.DOTALL)
        return cls(found[1], found[2]) if found else cls(spec)

    def items(self) -> Iterator[tuple[str, str]]:
        """(place, text) of every item.

        Raises:
            UserError: a file or row does not fit.
        """
        for file in find_files([self.path]):
            for place, row in read.rows(Path(file.path)):
                try:
                    yield place, self._text(row)
                except TemplateError as error:
                    raise UserError(f"{place}: {error}") from None

    def _text(self, row: Row) -> str:
        if self.template is not None:
            return render(self.template, row)
        for field in _QUESTION_FIELDS:
            if isinstance(row.get(field), str):
                return str(row[field])
        raise TemplateError(
            f"none of the fields {', '.join(_QUESTION_FIELDS)} is text; say which with PATH={{field}}"
        )


@dataclass(frozen=True)
class DecontaminateJob:
    """What every worker does."""

    text: TextOptions
    keep_clean: bool

    def open(self) -> _Decontaminate:
        return _Decontaminate(self)


class _Decontaminate:
    """Rows of a piece -> matches, and the rows without one."""

    def __init__(self, job: DecontaminateJob):
        self._job = job
        self._index: Index | None = None
        self.columns = None if job.keep_clean else job.text.columns()
        self.max_row_bytes = job.text.max_row_bytes

    def run(self, name: str, rows: PieceRows, folder: Path) -> Callable[[], dict[str, Any]]:
        work = folder / ".work"
        self._index = self._index or Index.load(work / _INDEX)
        matches: list[str] = []
        documents = kept = 0
        clean_path = work / f"{name}.part.jsonl"
        with (work / f"{name}.part.matches").open("w", encoding="utf-8") as found:
            clean = clean_path.open("w", encoding="utf-8") if self._job.keep_clean else None
            try:
                for place, row in rows:
                    try:
                        text = document(row, self._job.text).text
                    except TemplateError as error:
                        rows.bad(place, str(error), row)
                        continue
                    documents += 1
                    exact, overlap = self._index.exact_items(text), self._index.overlapping_items(text)
                    if exact or overlap:
                        known = bool(exact) and self._index.in_reference(text)
                        entry = {"at": place, "exact": exact, "overlap": overlap, "in_reference": known}
                        matches.append(json.dumps(entry) + "\n")
                    else:
                        kept += 1
                        if clean:
                            clean.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                    if documents % _REPORT_EVERY == 0:
                        rows.report(documents, 0)
                found.write("".join(matches))
            finally:
                if clean:
                    clean.close()
        rows.report(documents, 0)

        def finish() -> dict[str, Any]:
            (work / f"{name}.part.matches").rename(work / f"{name}.matches")
            if self._job.keep_clean:
                if kept:
                    clean_path.rename(folder / f"part-{name}.jsonl")
                else:
                    clean_path.unlink()
            return {"documents": documents, "kept": kept}

        return finish


def decontaminate(
    inputs: list[str],
    against: list[TextSet],
    references: list[TextSet],
    report: Path,
    out: Path | None,
    text: TextOptions,
    ngram: int,
    rejects: Path | None,
    run: Run,
    piece_bytes: int = 0,
    prepare: Callable[[Path], None] = prepare_folder,
) -> dict[str, Any]:
    """Write the report (and the clean rows); returns it.

    Args:
        references: training sets; a document that stands in one is counted apart, because an exact match with an
            evaluation item may then only mean that the two collections hold nearly the same item.
        ngram: words in a row that count as overlap; 0: exact matches only.
        prepare: called with the folder of the output before anything is written there.

    Raises:
        UserError: a file or row that does not fit, or `out` is in use.
        WorkFailed: a worker broke.
    """
    if ngram < 0 or ngram == 1:
        raise UserError("--ngram is a number of words from 2 up, or 0 for exact matches only")
    files = find_files(inputs, out)
    items = [(number, place, item) for number, one in enumerate(against) for place, item in one.items()]
    known = [item for one in references for _, item in one.items()]
    folder = out or report.with_name(f".{report.name}.parts")
    if out and out.is_dir() and not (out / ".work").is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another folder with --out")
    job = DecontaminateJob(text, out is not None)
    wanted = {"options": text.plain(), "ngram": ngram, "items": items, "known": known, "out": out is not None}
    plan = make_plan(files, [wanted, rejects is not None], piece_bytes)
    records = Records(folder / ".work", plan)
    prepare(folder)
    Index.of((item for _, _, item in items), ngram, known).save(folder / ".work" / _INDEX)
    run(plan, job, folder, rejects is not None, records.done())
    done = records.done()
    if missing(plan, done):
        raise UserError(f"{folder}: pieces are still missing; give the same command again")
    clean = {f"part-{piece.name}.jsonl" for piece, record in done.items() if record["kept"]}
    for path in folder.glob("part-*.jsonl"):
        if path.name not in clean:  # of an attempt with other rows
            path.unlink()
    made, lines = _report(plan, done, records, against, items)
    made |= {"ngram": ngram, "references": [asdict(one) for one in references]}
    if rejects is not None:
        write_text(rejects, records.all_rejects(done))
    write_text(report.with_name(f"{report.stem}.matches.jsonl"), lines)
    write_json(report, made)
    shutil.rmtree(folder if out is None else folder / ".work")
    return made


def _report(
    plan: Plan,
    done: dict[Piece, dict[str, Any]],
    records: Records,
    against: list[TextSet],
    items: list[tuple[int, str, str]],
) -> tuple[dict[str, Any], str]:
    """(the report, the lines of all matches in the order of the documents)."""
    counts = [Counter[str]() for _ in against]
    hit: list[dict[str, set[int]]] = [{"exact": set(), "overlap": set()} for _ in against]
    lines: list[str] = []
    for entry, place in records.entries(done, "matches"):
        for kind in ("exact", "overlap"):
            for number in {items[item][0] for item in entry[kind]}:
                counts[number][kind] += 1
                counts[number]["exact_in_reference"] += kind == "exact" and entry["in_reference"]
            for item in entry[kind]:
                hit[items[item][0]][kind].add(item)
        shown = {kind: [items[item][1] for item in entry[kind]] for kind in ("exact", "overlap")}
        lines.append(json.dumps({**place, **shown, "in_reference": entry["in_reference"]}) + "\n")
    totals: Counter[str] = Counter()
    for record in done.values():
        totals.update({key: record[key] for key in ("rows", "rejects", "documents", "kept")})
    sizes = Counter(number for number, _, _ in items)
    sets = [
        {
            **asdict(one),
            "items": sizes[number],
            "documents_exact": counts[number]["exact"],
            "documents_exact_in_reference": counts[number]["exact_in_reference"],
            "documents_overlapping": counts[number]["overlap"],
            "items_exact": len(hit[number]["exact"]),
            "items_overlapping": len(hit[number]["overlap"]),
        }
        for number, one in enumerate(against)
    ]
    made = {
        "files": [file.path for file in plan.files],
        "rows": totals["rows"],
        "rejected": totals["rejects"],
        "documents": totals["documents"],
        "contaminated": totals["documents"] - totals["kept"],
        "clean": totals["kept"],
        "sets": sets,
    }
    return made, "".join(lines)
