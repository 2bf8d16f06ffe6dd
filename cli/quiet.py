"""Keeps other libraries' messages off the terminal while a command works."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from edge_pslora.cli.progress_bar import progress_on
from edge_pslora.progress import Progress

# Read by libraries when they are imported, so set before the first heavy import. Nothing here
# may reach the network: an edge device is offline, and a failing look-up costs seconds.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


class _Discard(io.TextIOBase):
    """A text stream that forgets what it is given; libraries may print for hours."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def quiet_others(*, debug: bool) -> Iterator[None]:
    """Holds back prints, warnings and log lines; with `debug` they go to stderr, not to stdout."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if debug:
        with redirect_stdout(sys.stderr):
            yield
        return
    logging_level = logging.root.manager.disable
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(_Discard()))
        stack.enter_context(redirect_stderr(_Discard()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, logging_level)
        yield


@contextmanager
def working(*, quiet: bool, debug: bool) -> Iterator[Progress]:
    """The surroundings of every command's work: bars for people, silence from everyone else."""
    with progress_on(sys.stderr, quiet=quiet) as progress, quiet_others(debug=debug):
        yield progress
