"""The exceptions of edge-pslora, each tied to one exit code of the command line.

    EdgePsloraError            1  failed, nothing changed
    |-- NotEligibleError          the device may not learn now; the same command goes on later
    |-- UsageError             2  wrong use
    |-- GateRefusedError       3  refused by the gate, the old model still serves
    |-- InputError             4  bad input
    |   |-- DataError             the user's data
    |   |-- ModelError            the user's model or weights
    |   |-- AdapterError          an adapter folder or file
    |   |-- WorkspaceError        a workspace that is damaged or belongs to another model
    |   `-- BundleError           a signed update that is not for this device, or not to be trusted
    |-- WorkspaceLockedError   5  another process writes to the workspace
    `-- BudgetError            6  a budget cannot be met

Every error says where, what was expected, what was found and what to do, on one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


def _one_line(text: str, limit: int = 300) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."


class EdgePsloraError(Exception):
    """Base of all errors raised on purpose.

    Args:
        where: the file, line, layer or option concerned.
        expected: what would have been right.
        found: what was there instead.
        remedy: what the user can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, *, expected: str, found: str, remedy: str) -> None:
        self.where = _one_line(where)
        self.expected = _one_line(expected)
        self.found = _one_line(found)
        self.remedy = _one_line(remedy)
        super().__init__(
            f"{self.where}: expected {self.expected}; found {self.found}; {self.remedy}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The error as the JSON object that `--json` prints."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "remedy": self.remedy,
            "message": str(self),
        }


class UsageError(EdgePsloraError):
    """Options that contradict each other or that no run could honour."""

    exit_code = 2


class GateRefusedError(EdgePsloraError):
    """The new model was not good enough to be promoted. figures: what `--json` says beside the message."""

    exit_code = 3

    def __init__(
        self,
        where: str,
        *,
        expected: str,
        found: str,
        remedy: str,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(where, expected=expected, found=found, remedy=remedy)
        self.figures = dict(figures or {})

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | self.figures


class InputError(EdgePsloraError):
    """A file or folder given by the user cannot be used."""

    exit_code = 4


class DataError(InputError):
    """The user's data."""


class ModelError(InputError):
    """The user's model, weights or target layers."""


class AdapterError(InputError):
    """An adapter folder or file."""


class WorkspaceError(InputError):
    """A workspace that is missing, damaged or made for another model."""


class BundleError(InputError):
    """A signed update: damaged, not signed by enough keys, expired, old, or made for others."""


class WorkspaceLockedError(EdgePsloraError):
    """Another process is writing to the workspace."""

    exit_code = 5


class BudgetError(EdgePsloraError):
    """A memory, history or time budget that cannot be met; `remedy` names the least that would do."""

    exit_code = 6


class NotEligibleError(EdgePsloraError):
    """The device may not learn now. Code 1, as nothing was changed and no option is wrong: a timer tries
    the same command again, and it goes on where it was."""
