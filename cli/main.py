"""The command `edge-pslora`: its commands, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from edge_pslora.cli import (
    adapt,
    apply,
    bundle,
    compare,
    demo,
    export,
    inspect,
    keys,
    measure,
    moves,
    replay,
)
from edge_pslora.cli.output import print_json, printable
from edge_pslora.cli.waiting import wait_asleep
from edge_pslora.errors import EdgePsloraError, UsageError
from edge_pslora.version import VERSION

PROGRAM = "edge-pslora"
INTERRUPTED = 130  # 128 + SIGINT, as shells count
PIPE_CLOSED = 141  # 128 + SIGPIPE: the work is done, nobody reads the result

# Typer before 0.26 raises click's exceptions, later versions their own copies of them; this is
# the class that both derive wrong use from.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name=PROGRAM,
    help="A device keeps learning from its own data and does not forget.",
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)
_LEARN, _LOOK, _MOVE, _UPDATE = "Learn", "Look", "Move", "Update"
app.command(rich_help_panel=_LEARN)(demo.demo)
app.command(rich_help_panel=_LEARN)(adapt.adapt)
app.command(rich_help_panel=_LOOK)(inspect.inspect)
app.command(rich_help_panel=_LOOK)(compare.compare)
app.command("eval", rich_help_panel=_LOOK)(measure.evaluate)
app.command(rich_help_panel=_LOOK)(measure.status)
app.command(rich_help_panel=_LOOK)(measure.report)
app.command(rich_help_panel=_MOVE)(moves.rollback)
app.command(rich_help_panel=_MOVE)(export.export)
app.command(rich_help_panel=_MOVE)(replay.replay)
app.command(rich_help_panel=_MOVE)(moves.merge)
app.add_typer(keys.app, name="keys", rich_help_panel=_UPDATE)
app.command(rich_help_panel=_UPDATE)(bundle.bundle)
app.command(rich_help_panel=_UPDATE)(apply.verify)
app.command(rich_help_panel=_UPDATE)(apply.apply)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"{PROGRAM} {VERSION}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """A device keeps learning from its own data, within its budgets, and does not forget."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; prints every error, raises none.

    Args:
        argv: the arguments after the program's name; None takes them from the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    wait_asleep(os.environ)
    for stream in (sys.stdout, sys.stderr):
        # A label in Greek must not end a run under LANG=C.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


def _run(arguments: list[str]) -> int:
    # The flags are looked up here as well: an error may happen before they are parsed.
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json, debug = "--json" in options, "--debug" in options
    try:
        command = typer.main.get_command(app)
        if not arguments:
            arguments = ["--help"]
        with command.make_context(PROGRAM, arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except _CommandLineError as error:
        return _fail(_wrong_use(error), as_json=as_json, debug=debug)
    except EdgePsloraError as error:
        return _fail(error, as_json=as_json, debug=debug)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail(error, as_json=as_json, debug=debug)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the outermost frame: nothing above it can handle more
        return _fail(error, as_json=as_json, debug=debug)
    return 0


def _wrong_use(error: Exception) -> UsageError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return UsageError(
        path,
        expected="arguments as its help shows them",
        found=message.rstrip("."),
        remedy=f"see {path} --help",
    )


def _fail(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """One line on stderr, or one JSON object on stdout."""
    if isinstance(error, EdgePsloraError):
        facts = error.to_dict()
    elif isinstance(error, (KeyboardInterrupt, typer.Abort)):
        facts = _facts(
            "Interrupted", INTERRUPTED, "interrupted; nothing that was served has changed"
        )
    else:
        hint = "" if debug else "; run again with --debug to see the traceback"
        text = " ".join(str(error).split())[:300]
        facts = _facts(
            type(error).__name__, 1, f"failed: {type(error).__name__}: {text or 'no message'}{hint}"
        )
    if debug:
        traceback.print_exception(error)
    if as_json:
        print_json(facts)
    else:
        message = printable(str(facts["message"]))
        sys.stderr.write(message if message.startswith(PROGRAM) else f"{PROGRAM}: {message}")
        sys.stderr.write("\n")
    return int(facts["exit_code"])


def _facts(name: str, code: int, message: str) -> dict[str, str | int]:
    return {"error": name, "exit_code": code, "message": message}


if __name__ == "__main__":
    sys.exit(main())
