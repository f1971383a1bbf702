"""All parts of the gate on one folder and one checkpoint, and its two reports.

    files       4. config field by field, tokenizer byte by byte, chat template, tie flag, vocabulary rows
    round-trip  1. HF -> Megatron -> HF bit for bit in TP x PP of {1,2} x {1,2}, and the checkpoint's own bits
    logits      2. FP32 logits against transformers
    generation  5. 64 greedy tokens in transformers, vLLM and Megatron
    bf16        3. BF16 best tokens, KL and loss on the fixed documents

The cheap ones come first. Numbers in the table are those of the reports.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import write_json, write_text
from octo_megatron.config.schema import GATE_PARTS
from octo_megatron.config.versions import installed_versions
from octo_megatron.convert.bar import OnProgress, silent
from octo_megatron.convert.gate import files, generation, logits, round_trip
from octo_megatron.convert.gate.result import FAILED, LEFT_OUT, PASSED, GateError, GateReport, PartResult
from octo_megatron.convert.gate.transformers_forward import Reference, fits
from octo_megatron.convert.torch_dist import DistCheckpoint
from octo_megatron.model.hf_folder import HfFolder
from octo_megatron.parallel import world as worlds

PARTS = {"files": 4, "round-trip": 1, "logits": 2, "generation": 5, "bf16": 3}
"""Part -> its number in the reports."""
REPORT, READABLE = "conversion_report.json", "CONVERSION.md"

_BEAT_SECONDS = 5.0


def run_gate(
    folder: Path,
    checkpoint: Path,
    hf_config: dict[str, Any],
    originals: Sequence[Path],
    skip: Sequence[str] = (),
    progress: OnProgress = silent,
) -> GateReport:
    """Run every part that is not skipped, in this process alone (it joins a world of one).

    Args:
        hf_config: the config that the checkpoint was made with.
        originals: folders with the files beside the weights as they came, first match wins.
        skip: names of GATE_PARTS to leave out; the reports say so.
    """
    unknown = sorted(set(skip) - set(GATE_PARTS))
    if unknown:
        raise UserError(f"the gate has no part '{unknown[0]}'; its parts are {', '.join(GATE_PARTS)}")
    with worlds.alone():
        return GateReport(list(_parts(folder, checkpoint, hf_config, originals, skip, progress)))


def _parts(
    folder: Path,
    checkpoint: Path,
    hf_config: dict[str, Any],
    originals: Sequence[Path],
    skip: Sequence[str],
    progress: OnProgress,
) -> Iterator[PartResult]:
    source, reference = HfFolder(folder), _Lazily(folder)

    def work(name: str) -> tuple[str, dict[str, Any]]:
        if name == "files":
            return files.check(source, hf_config, originals)
        if name == "round-trip":
            report = lambda done, of: progress("gate: round trip", done, of)  # noqa: E731
            return round_trip.check(source, DistCheckpoint(checkpoint), hf_config, report)
        if name == "logits":
            return logits.check_fp32(source, reference.get())
        if name == "bf16":
            reference.forget()  # two copies of a model are one too many
            return logits.check_bf16(source, lambda: Reference(source, "bf16"))
        if not fits(source, "fp32"):
            raise _NotRun(
                "generation needs the whole model in memory, and it takes more than half of what is free"
            )
        missing = None if "vllm" not in skip else "vLLM was left out on request"
        missing = missing or generation.vllm_is_missing()
        line, figures = generation.check(source, reference.get(), missing is None)
        return (line, figures) if missing is None else (f"{line}. NOT COMPARED WITH vLLM: {missing}", figures)

    for index, name in enumerate(PARTS):
        progress(f"gate: {name}", index, len(PARTS))
        began = time.perf_counter()
        try:
            if name in skip:
                raise _NotRun("left out on request")
            with _heartbeat(partial(progress, f"gate: {name}", index, len(PARTS))):
                line, figures = work(name)
            yield PartResult(name, PASSED, line, figures, time.perf_counter() - began)
        except _NotRun as reason:
            yield PartResult(name, LEFT_OUT, str(reason))
        except UserError as error:
            yield PartResult(name, FAILED, str(error), {}, time.perf_counter() - began)


@contextmanager
def _heartbeat(beat: Callable[[], None]) -> Iterator[None]:
    """Say every few seconds that a part is at work: a forward pass of a large model is long and not a hang.

    The one thing in the gate that could hang, vLLM's process, has a deadline of its own.
    """
    ended = threading.Event()

    def say() -> None:
        while not ended.wait(_BEAT_SECONDS):
            beat()

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _NotRun(Exception):
    """A part cannot be run here, or was not asked for."""


class _Lazily:
    """transformers' FP32 model of the folder, loaded when a part asks for it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._model: Reference | None = None

    def get(self) -> Reference:
        if self._model is None:
            self._model = Reference(HfFolder(self._folder), "fp32")
        return self._model

    def forget(self) -> None:
        self._model = None


def require_passed(report: GateReport, what: str) -> None:
    """Raises GateError with the first part that failed."""
    failed = [part for part in report.parts if part.status == FAILED]
    if failed:
        more = f" (and {len(failed) - 1} more: {', '.join(p.name for p in failed[1:])})" if failed[1:] else ""
        raise GateError(f"{what}: the gate failed at {failed[0].name}: {failed[0].line}{more}")


def write_reports(folder: Path, report: GateReport, facts: dict[str, Any]) -> None:
    """Write conversion_report.json and CONVERSION.md into `folder`."""
    plain = {
        "passed": report.passed,
        "left_out": report.left_out,
        "parts": {
            part.name: {
                "number": PARTS[part.name],
                "status": part.status,
                "result": part.line,
                "seconds": round(part.seconds, 3),
                **part.figures,
            }
            for part in report.parts
        },
        **facts,
        "versions": installed_versions(),
    }
    write_json(folder / REPORT, plain)
    write_text(folder / READABLE, readable(report, facts))


def readable(report: GateReport, facts: dict[str, Any]) -> str:
    """CONVERSION.md: what was compared, how far apart it was, and what was not run."""
    lines = ["# How this folder was checked", ""]
    lines += [f"- {key}: {_text(value)}" for key, value in facts.items()]
    lines += ["", "| | part | result | what was found | seconds |", "| --- | --- | --- | --- | --- |"]
    for part in sorted(report.parts, key=lambda part: PARTS[part.name]):
        status = part.status if part.status == PASSED else f"**{part.status.upper()}**"
        found = part.line.replace("|", "\\|")
        lines.append(f"| {PARTS[part.name]} | {part.name} | {status} | {found} | {part.seconds:.1f} |")
    if report.left_out:
        lines += ["", f"**Not everything was checked:** {', '.join(report.left_out)} did not run."]
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    return "\n".join([*lines, "", f"Made with {versions}.", ""])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
