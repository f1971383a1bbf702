"""The command `octo`: one file a verb; this one names them and turns errors into exit codes."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from types import FrameType

import typer

from octo_megatron.config.errors import UserError, WorkFailed

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

_VERBS = {
    "demo": "demo:demo",
    "run": "run:run",
    "plan": "plan:plan",
    "status": "status:status",
    "report": "report:report",
    "inspect": "inspect:inspect",
    "tokenize": "tokenize:tokenize",
    "rollouts": "rollouts:rollouts",
    "decontaminate": "decontaminate:decontaminate",
    "import": "convert:import_folder",
    "export": "convert:export_folder",
    "verify": "convert:verify_folder",
    "profile": "profile:profile",
    "doctor": "doctor:doctor",
    "preflight": "preflight:preflight",
}
"""Verb -> file of this folder and function in it, in the order of `octo --help`."""


def application(asked: str | None = None) -> typer.Typer:
    """The command with all its verbs, or with the one that is asked for: loading all takes as long again as that."""
    app = typer.Typer(
        name="octo",
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(lambda: None)  # typer would take a single verb for the whole command
    for verb in [asked] if asked in _VERBS else _VERBS:
        file, function = _VERBS[verb].split(":")
        app.command(verb)(getattr(import_module(f"octo_megatron.cli.{file}"), function))
    return app


def main() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        application(sys.argv[1] if len(sys.argv) > 1 else None)()
    except UserError as error:
        sys.exit(_complain(str(error), 2))
    except WorkFailed as error:
        sys.exit(_complain(str(error), 1))


def _complain(message: str, code: int) -> int:
    print(f"octo: error: {message}", file=sys.stderr)
    return code


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
