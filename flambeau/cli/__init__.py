"""The command line: one file a command, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from flambeau.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, FlambeauError

COMMANDS = {
    "train": "train a configuration",
    "submit": "train a configuration as a job of Slurm, or write the task for other schedulers",
    "resume": "go on with a run from its newest whole checkpoint",
    "evaluate": "measure a trained model",
    "predict": "apply a trained model to data",
    "export": "write a trained model's weights into one file",
    "runs": "list the runs: state, step, best score",
    "find-lr": "find a learning rate by a sweep over many",
    "config": "show a resolved configuration and where each value comes from",
    "list": "list models, data, criterions and other parts with their arguments",
}

SEVERAL = ("train", "resume", "evaluate")
"""Commands that run in several processes where a launcher starts them so."""

EPILOG = """\
exit status:
  0  done     1  failed     2  wrong usage or configuration     75  preempted: saved, to be resumed
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    # Not list(...): importing the command `list` binds that name in this package.
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    if arguments and arguments[0] in SEVERAL and "SLURM_STEP_NUM_TASKS" in os.environ:
        from flambeau.launch.slurm import join_step

        join_step(arguments)
    if arguments and arguments[0] in SEVERAL and "RANK" in os.environ:
        from flambeau.launch.environment import is_worker
        from flambeau.launch.worker import leave, run_worker

        if is_worker():
            leave(run_worker(lambda: _dispatch(arguments)))
    try:
        return _dispatch(arguments)
    except FlambeauError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has left; Python would complain once more when it flushes at exit.
        sys.stdout = None
        return EXIT_FAILED


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return EXIT_DONE if arguments else EXIT_USAGE
    if arguments[0] in ("-V", "--version"):
        from flambeau import __version__

        print(f"flambeau {__version__}")
        return EXIT_DONE
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean 'flambeau {near[0]}'?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"error: there is no command '{name}'; {hint}", file=sys.stderr)
        return EXIT_USAGE
    command = importlib.import_module(f"flambeau.cli.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"flambeau {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    try:
        parsed = parser.parse_intermixed_args(rest)
    except SystemExit as leaving:  # argparse has printed what is wrong, or the help
        return int(leaving.code or 0)
    parsed.arguments = arguments
    status: int = command.run(parsed)
    return status


def _overview() -> str:
    lines = [
        "usage: flambeau COMMAND ...",
        "",
        "Train PyTorch models, and know that the training is right.",
        "",
        "commands:",
    ]
    lines += [f"  {name:<10} {help_text}" for name, help_text in COMMANDS.items()]
    return "\n".join([*lines, "", "flambeau COMMAND --help tells more.", "", EPILOG])
