"""The command `octo`: one file a verb; this one names them and turns errors into exit codes."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from octo_megatron.cli.convert import export_folder, import_folder, verify_folder
from octo_megatron.cli.decontaminate import decontaminate
from octo_megatron.cli.demo import demo
from octo_megatron.cli.doctor import doctor
from octo_megatron.cli.inspect import inspect
from octo_megatron.cli.plan import plan
from octo_megatron.cli.preflight import preflight
from octo_megatron.cli.profile import profile
from octo_megatron.cli.report import report
from octo_megatron.cli.rollouts import rollouts
from octo_megatron.cli.run import run
from octo_megatron.cli.status import status
from octo_megatron.cli.tokenize import tokenize
from octo_megatron.config.errors import UserError, WorkFailed
from octo_megatron.lineage.runner import StageFailed

_HELP = """Mid-training, reinforcement learning and evaluation of a language model as one declared lineage.

A lineage file (configs/lineage/*.yaml) names nodes: import, train, rl, evaluate, export. Running it fills a
run folder and does only what is missing there.

[bold]Start here[/bold]

octo doctor                    is this machine ready?

octo demo --quick              the whole path in 3 minutes, from random weights to a report

octo demo                      the same with budgets that show the effect

octo run LINEAGE.yaml          your own lineage; KEY=VALUE changes any value

octo plan LINEAGE.yaml         parameters, layout, memory, rate and days

octo status RUN                where each node stands

octo inspect RUN --step N      what was in the batch of a step

octo rollouts RUN --step N     the best, worst and longest answers of an RL step

[bold]Exit codes[/bold]: 0 done, 1 a stage crashed, 2 a mistake in what was asked, 4 a bad node,
75 stopped by SIGTERM or SIGUSR1 and saved, 130 stopped at once.
"""

app = typer.Typer(
    name="octo",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(run)
app.command()(plan)
app.command()(status)
app.command()(report)
app.command()(inspect)
app.command()(tokenize)
app.command()(rollouts)
app.command()(decontaminate)
app.command("import")(import_folder)
app.command("export")(export_folder)
app.command("verify")(verify_folder)
app.command()(profile)
app.command()(doctor)
app.command()(preflight)


def main() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        app()
    except UserError as error:
        sys.exit(_complain(str(error), 2))
    except (StageFailed, WorkFailed) as error:
        sys.exit(_complain(str(error), 1))


def _complain(message: str, code: int) -> int:
    print(f"octo: error: {message}", file=sys.stderr)
    return code


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
