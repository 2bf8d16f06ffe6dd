"""What typer makes anew for each command line is made once: most of a small command's time."""

from __future__ import annotations

import functools

import typer

from edge_pslora.cli.main import app


def keep_command() -> None:
    """Keeps the command that typer builds of our functions; forked children have it too.

    It depends on the functions alone, and no command line changes it.
    """
    if not hasattr(typer.main.get_command, "cache_info"):
        typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(app)
