"""What typer makes anew for each command line is made once: most of a small command's time."""

from __future__ import annotations

import contextlib
import functools
import io
import os

import typer

from edge_pslora.cli.main import app, main


def keep_command() -> None:
    """Keeps the command that typer builds of our functions; forked children have it too.

    It depends on the functions alone, and no command line changes it.
    """
    if not hasattr(typer.main.get_command, "cache_info"):
        typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(app)


def warm_command() -> None:
    """And reads one, of nothing: what is imported for that need not be imported in each child."""
    keep_command()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        main(["status", os.devnull])
