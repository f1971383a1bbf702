"""`python -m octo_megatron.convert.command import|export|verify A B`: conversion outside a lineage.

With `--processes N` it starts N - 1 copies of itself, told apart by RANK and WORLD_SIZE as torchrun does, which
share the work; under torchrun or srun with those variables set, each process takes its share.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import GATE_PARTS
from octo_megatron.convert.bar import shown
from octo_megatron.convert.export_stage import Wish, export_folder, verify_folder
from octo_megatron.convert.gate.run import PARTS, readable, require_passed
from octo_megatron.convert.import_stage import import_folder
from octo_megatron.convert.journal import Share
from octo_megatron.convert.ranks import PARENT, end_with_parent, share_of_environment


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 when the conversion was made and proven, 2 after a user's mistake or a failed gate."""
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = _parser().parse_args(arguments)
    end_with_parent()
    try:
        if chosen.verb == "verify":
            _verify(chosen)
            return 0
        with _shared(arguments, chosen.processes) as share:
            _convert(chosen, share)
    except UserError as error:
        print(f"octo: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m octo_megatron.convert.command", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    into = verbs.add_parser("import", help="Hugging Face folder -> Megatron checkpoint")
    into.add_argument("hf_dir", type=Path)
    into.add_argument("checkpoint_dir", type=Path)
    into.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    out = verbs.add_parser("export", help="Megatron checkpoint -> Hugging Face folder")
    out.add_argument("checkpoint_dir", type=Path)
    out.add_argument("hf_dir", type=Path)
    out.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    out.add_argument("--shard-gb", type=float, default=5.0, help="largest weight file")
    check = verbs.add_parser("verify", help="the gate on a checkpoint and a folder that are there already")
    check.add_argument("checkpoint_dir", type=Path)
    check.add_argument("hf_dir", type=Path)
    for verb in (into, out):
        verb.add_argument("--processes", type=int, default=1, help="that share the work")
    for verb in (out, check):
        verb.add_argument(
            "--skip", action="append", default=[], choices=GATE_PARTS, help="part of the gate to leave out"
        )
    return parser


def _convert(chosen: argparse.Namespace, share: Share) -> None:
    if chosen.verb == "import":
        target = chosen.checkpoint_dir
        with shown(share.is_first) as progress:
            result = import_folder(chosen.hf_dir, target, chosen.precision, share, progress=progress)
    else:
        target = chosen.hf_dir
        if chosen.shard_gb <= 0:
            raise UserError(f"--shard-gb is {chosen.shard_gb:g}; it must be above 0")
        wish = Wish(chosen.dtype, int(chosen.shard_gb * 1e9), chosen.skip)
        with shown(share.is_first) as progress:
            result = export_folder(chosen.checkpoint_dir, target, wish, share, progress)
    if result is not None:
        print(f"{target}: {_summary(result)}")


def _summary(result: dict[str, Any]) -> str:
    line = f"{result['tensors']} tensors, {result['bytes'] / 1e6:.1f} MB"
    if "max_logit_difference" in result:
        line += f"; largest logit difference to transformers {result['max_logit_difference']:.2g}"
    if "weights_sha256" in result:
        line += f"; weights {result['weights_sha256'][:16]}"
    if result.get("not_run"):
        line += f"; NOT CHECKED: {', '.join(result['not_run'])}"
    return line


def _verify(chosen: argparse.Namespace) -> None:
    with shown() as progress:
        report = verify_folder(chosen.checkpoint_dir, chosen.hf_dir, chosen.skip, progress)
    print(readable(report, {"checkpoint": str(chosen.checkpoint_dir), "folder": str(chosen.hf_dir)}))
    require_passed(report, str(chosen.hf_dir))
    print(f"{chosen.hf_dir}: {sum(p.status == 'passed' for p in report.parts)} of {len(PARTS)} parts passed")


@contextmanager
def _shared(arguments: list[str], processes: int) -> Iterator[Share]:
    """This process's share; with several processes the others are started here and ended with it."""
    share = share_of_environment()
    if processes < 1:
        raise UserError(f"--processes is {processes}; it must be at least 1")
    if share.size > 1 or processes == 1:
        yield share
        return
    others: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    for rank in range(1, processes):
        said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
        numbers = {"RANK": rank, "WORLD_SIZE": processes, PARENT: os.getpid()}
        env = {**os.environ, **{name: str(number) for name, number in numbers.items()}}
        command = [sys.executable, "-m", "octo_megatron.convert.command", *arguments]
        others.append((subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=said), said))

    def check() -> None:
        for rank, (process, said) in enumerate(others, start=1):
            if process.poll():
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                last = (
                    lines[-1].removeprefix("octo: error: ")
                    if lines
                    else f"ended with code {process.returncode}"
                )
                raise UserError(f"rank {rank} of {processes}: {last}")

    try:
        yield Share(0, processes, check)
    finally:
        for process, said in others:
            process.kill()
            process.wait()
            said.close()


if __name__ == "__main__":
    sys.exit(main())
