"""One process of one node: `python -m octo_megatron.lineage.worker RUN NODE [PURPOSE]`, started by `octo run`.

Where engines are separate, the last ranks of the launch sample; the others train and see a world of their own.

PURPOSE is `profile:STEPS` for `octo profile`.

Ends with code 0 after the stage, 2 after a user's mistake, 1 after a crash and 75 when a signal stopped it; all but the
first leave error.json.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

from octo_megatron.config.errors import UserError, WorkFailed
from octo_megatron.config.run_folder import NodeContext, report_error
from octo_megatron.lineage.run_state import load_run
from octo_megatron.parallel.stop import EXIT_CODE, STOP, Stopped

STAGES = {
    "train": "octo_megatron.train.stage",
    "rl": "octo_megatron.rl.stage",
    "evaluate": "octo_megatron.evaluate.stage",
    "import": "octo_megatron.convert.import_stage",
    "export": "octo_megatron.convert.export_stage",
}
"""Kind of node -> module whose `run(ctx)` does it. By name, so that a stage loads no other stage's engine."""

SAMPLING = "octo_megatron.engine.sampling_rank"
"""Module whose `run(ctx)` is a rank that samples."""

PROFILE = "octo_megatron.train.profile"
"""Module whose `run(ctx, steps)` records a few steps of a train node."""


def run_stage(root: Path, name: str, purpose: str = "") -> int:
    """Run node `name` of run folder `root` in this process, as the rank that the environment says.

    `purpose`: see above.

    Returns:
        The exit code; errors are printed and written to the node's error.json.
    """
    # `octo run` sends SIGUSR2 to a node that has been silent for too long: the log then says where it hangs.
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    STOP.install()
    error_file, rank = root / "nodes" / name / "error.json", int(os.environ.get("RANK", "0"))
    try:
        run, lineage = load_run(root)
        context = NodeContext(run, lineage, name)
        if purpose:
            importlib.import_module(PROFILE).run(context, int(purpose.removeprefix("profile:")))
        else:
            importlib.import_module(_module(context, rank)).run(context)
    except UserError as error:
        print(f"octo: error: {error}", file=sys.stderr, flush=True)
        report_error(error_file, rank, "user", str(error))
        return 2
    except Stopped as stop:
        print(f"octo: {stop}", file=sys.stderr, flush=True)
        report_error(error_file, rank, "stopped", str(stop))
        return EXIT_CODE
    except WorkFailed as error:  # on another rank: nothing to trace here
        print(f"octo: {error}", file=sys.stderr, flush=True)
        report_error(error_file, rank, "crash", str(error))
        return 1
    # Not only Exception: torch's CheckpointException derives from BaseException alone.
    except BaseException as error:
        traceback.print_exc()
        report_error(error_file, rank, "crash", traceback.format_exception_only(error)[-1].strip())
        return 1
    return 0


def _module(context: NodeContext, rank: int) -> str:
    """What this rank runs; a rank that trains is told the size of the world that trains.

    Raises:
        UserError: not as many processes were started as train and sample.
    """
    sampling = context.lineage.sampling_ranks_of(context.name)
    if sampling:
        training = context.lineage.layout_of(context.name).world_size
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != training + sampling:
            raise UserError(
                f"nodes.{context.name} needs {training} processes that train and {sampling} that sample "
                f"(engine.placement=separate), but {started} were started"
            )
        if rank >= training:
            return SAMPLING
        os.environ["WORLD_SIZE"] = str(training)
    return STAGES[context.node.kind]


def main() -> None:
    code = run_stage(Path(sys.argv[1]), *sys.argv[2:4])
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # A failed rank must not wait for its peers in a process group's destructor.
        os._exit(code)


if __name__ == "__main__":
    main()
