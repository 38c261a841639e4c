"""The `shoal` command: one file a verb, imported when its verb is typed, so that `--help` needs no torch.

A verb's module has one name, `command`: a function for typer, or a typer.Typer with verbs of its own. It may
return an exit code; None is 0.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.core
import typer.main

import shoal
from shoal.cli.terminal import printable
from shoal.errors import ShoalError

VERBS = {
    "node": ("shoal.cli.node", "Run a node: find the others, train with them, serve until all are done."),
    "coordinator": (
        "shoal.cli.coordinator",
        "Run a coordinator: count votes, or serve the model, for nodes that want one.",
    ),
    "demo": ("shoal.cli.demo", "Train five nodes on this machine and compare them with each alone."),
    "reproduce": ("shoal.cli.reproduce", "Run the papers' claims again, each figure beside its bar."),
    "bench": ("shoal.cli.bench", "Measure what an average, a vote, a step cost on this machine."),
    "simulate": ("shoal.cli.simulate", "Run the same algorithms in virtual time, with 2 to 1,000 workers."),
    "status": ("shoal.cli.status", "Show what a running node and its members do."),
    "doctor": ("shoal.cli.doctor", "Look for what would keep a node from working here, and say what to do."),
    "eval": ("shoal.cli.evaluate", "Measure a model on the held-out data of a task."),
    "export": ("shoal.cli.export", "Take the trained model out of a state folder, for plain torch."),
    "certs": ("shoal.cli.certs", "Make certificates, so that nodes talk over TLS and know each other."),
    "config": ("shoal.cli.config", "Show every setting and where it came from, or validate them."),
}
"""Verb -> (module, the line in `shoal --help`)."""

EPILOG = """\
Exit codes:

0  done

1  a fault of shoal's own (with a traceback) or of a peer, or a demo or a claim that did not hold

2  wrong input: an option, a setting, a task, data, a graph, a checkpoint, a port

3  a run that cannot go on with others than it began with has lost or got a member

4  the training diverged: its loss is no longer finite

130  stopped by Ctrl-C

143  stopped by SIGTERM
"""

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's or typer's own, by version; typer does not export it


class _Verbs(typer.core.TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in VERBS:
            self.commands[args[0]] = _load(args[0])
        return super().resolve_command(ctx, args)


def _load(verb: str) -> Any:
    command = importlib.import_module(VERBS[verb][0]).command
    if not isinstance(command, typer.Typer):
        function, command = command, typer.Typer(add_completion=False)
        command.command(verb)(function)
    loaded = typer.main.get_command(command)
    loaded.name = verb
    return loaded


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shoal {shoal.__version__}")
        raise typer.Exit


app = typer.Typer(cls=_Verbs, epilog=EPILOG, pretty_exceptions_enable=False)


@app.callback()
def _shoal(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train one PyTorch model across machines that keep their own data, with no hub."""


def _name_only() -> None:
    """Stands for a verb in `shoal --help`; `_Verbs` puts the real one in its place when it is called."""


for _verb, (_, _line) in VERBS.items():
    app.command(_verb, help=_line)(_name_only)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` (without the program's name; default sys.argv) and return the exit code.

    A user's and a peer's faults become one line on stderr; any other exception is ours and goes on, with its
    traceback and Python's exit code 1.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        code = app(given or ["--help"], prog_name="shoal", standalone_mode=False)
    except ShoalError as error:
        return _fail(str(error), error.exit_code)
    except _USAGE_ERROR as error:
        path = error.ctx.command_path if error.ctx else "shoal"
        return _fail(f"{error.format_message().rstrip('.')} (see {path} --help)", 2)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    for number, line in enumerate(message.splitlines()):
        print(f"{'error: ' if number == 0 else '  '}{printable(line, 2000)}", file=sys.stderr)
    return code
