"""One process of one node: `python -m octo_megatron.lineage.worker RUN NODE`, started by `octo run`.

Ends with code 0 after the stage, 2 after a user's mistake and 1 after a crash; the last two leave error.json.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import NodeContext
from octo_megatron.lineage.run_state import load_run

STAGES = {
    "train": "octo_megatron.train.stage",
    "rl": "octo_megatron.rl.stage",
    "evaluate": "octo_megatron.evaluate.stage",
    "import": "octo_megatron.convert.import_stage",
    "export": "octo_megatron.convert.export_stage",
}
"""Kind of node -> module whose `run(ctx)` does it. By name, so that a stage loads no other stage's engine."""


def run_stage(root: Path, name: str) -> int:
    """Run node `name` of run folder `root` in this process, as the rank that the environment says.

    Returns:
        The exit code; errors are printed and written to the node's error.json.
    """
    # `octo run` sends SIGUSR1 to a node that has been silent for too long: the log then says where it hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    error_file = root / "nodes" / name / "error.json"
    try:
        run, lineage = load_run(root)
        context = NodeContext(run, lineage, name)
        importlib.import_module(STAGES[context.node.kind]).run(context)
    except UserError as error:
        print(f"octo: error: {error}", file=sys.stderr, flush=True)
        _report(error_file, "user", str(error))
        return 2
    # Not only Exception: torch's CheckpointException derives from BaseException alone.
    except BaseException as error:
        traceback.print_exc()
        _report(error_file, "crash", traceback.format_exception_only(error)[-1].strip())
        return 1
    return 0


def _report(path: Path, kind: str, message: str) -> None:
    """Write error.json unless another rank was first: what follows elsewhere is mostly a lost connection."""
    rank = int(os.environ.get("RANK", "0"))
    temporary = path.with_name(f".error.{os.getpid()}.tmp")
    try:
        temporary.write_text(
            json.dumps({"rank": rank, "kind": kind, "message": message}) + "\n", encoding="utf-8"
        )
        os.link(temporary, path)
    except OSError:  # there is one already, or the disk is full: the log has it anyway
        pass
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    code = run_stage(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # A failed rank must not wait for its peers in a process group's destructor.
        os._exit(code)


if __name__ == "__main__":
    main()
