"""Where in the user's model an exporter gave up: the module, the line, the operator.

torch wraps the cause in pages of advice. What a user can act on is in the frames of its traceback: the
module whose forward was running, or the node of the graph that was being translated.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from edge_pslora.models.failures import FOREIGN_ERRORS, first_line

_TORCH = str(Path(torch.__file__).parent)
# A classifier's parts are `backbone` and `head`; the names that users know start below the former.
_OWN_PREFIX = "backbone."
_TRACED_LINE = re.compile(r'File "([^"]+)", line (\d+)')
_NOISE = re.compile(r"\x1b\[[0-9;]*m|\(unhinted: .*")  # colours; asides
_LONGEST = 130  # characters of a reason, and of a line of code


@dataclass(frozen=True)
class Failure:
    """One exporter's failure, in words for one line.

    where: "model.blocks.3.attention (net.py:41)", or "" where nothing tells. reason: what torch says.
    at: the node of the graph, or the line of code, that it was at; "" where nothing tells.
    """

    where: str
    reason: str
    at: str = ""

    @property
    def line(self) -> str:
        """For people."""
        at = f" at {self.at}" if self.at else ""
        return f"{self.reason}{at}" + (f" in {self.where}" if self.where else "")


@dataclass(frozen=True)
class _Place:
    """file and line of the model's own code; file "" where unknown."""

    file: str = ""
    line: int = 0

    @property
    def name(self) -> str:
        """The file's name alone: a path is of one machine."""
        return f"{Path(self.file).name}:{self.line}" if self.file else ""

    @property
    def code(self) -> str:
        return linecache.getline(self.file, self.line).strip() if self.file else ""


def failure(problem: BaseException, model: nn.Module) -> Failure:
    """What went wrong, and in which of the model's modules."""
    paths = {id(module): _known(name) for name, module in model.named_modules()}
    module, place, node = "", _Place(), ""
    causes = list(_causes(problem))
    for frame, line in (pair for error in causes for pair in _frames(error)):  # the last one counts
        running = paths.get(id(frame.f_locals.get("self")))
        if running is not None:
            module, place = running, place if _of_torch(frame) else _Place()
        if running is not None or module:
            place = place if _of_torch(frame) else _Place(frame.f_code.co_filename, line)
        handled = frame.f_locals.get("node")
        if isinstance(handled, torch.fx.Node):
            node = f"node {handled.name} ({handled.target})"
            module, place = _module_of(handled, model) or module, _place_of(handled)
        elif isinstance(handled, torch._C.Node):
            node = f"node {handled.kind()}"
            module = _scope_of(handled) or module
    reason = " ".join(_NOISE.sub("", first_line(causes[-1])).split()).rstrip(".")
    where = f"{module or 'the model'} ({place.name})" if place.name else module
    at = node or (f"`{_short(place.code)}`" if place.code else "")
    return Failure(where, _short(reason), at)


def fixed_size(
    model: nn.Module,
    example: Mapping[str, torch.Tensor],
    dynamic_axes: Mapping[str, tuple[str, ...]],
) -> Failure | None:
    """Where the model itself fails with one more along a free axis than in `example`; None: nowhere.

    torch.export finds a fixed size only after it has traced everything, and does not say where.
    """
    for axis in dict.fromkeys(axis for axes in dynamic_axes.values() for axis in axes if axis):
        grown = {n: _one_more(t, dynamic_axes.get(n, ()), axis) for n, t in example.items()}
        try:
            with torch.no_grad():
                model(**grown)
        except FOREIGN_ERRORS as problem:
            found = failure(problem, model)
            return Failure(
                found.where, f"another size of the axis {axis}: {found.reason}", found.at
            )
    return None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _one_more(tensor: torch.Tensor, axes: tuple[str, ...], axis: str) -> torch.Tensor:
    for position, name in enumerate(axes):
        if name == axis:
            tensor = torch.cat([tensor, tensor.narrow(position, 0, 1)], dim=position)
    return tensor


def _causes(problem: BaseException) -> Iterator[BaseException]:
    """The exception and its causes, the innermost last."""
    found: BaseException | None = problem
    while found is not None:
        yield found
        found = found.__cause__


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame, step.tb_lineno
        step = step.tb_next


def _of_torch(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith((_TORCH, "<"))


def _module_of(node: torch.fx.Node, model: nn.Module) -> str:
    """The innermost module that a node of torch.export stands for; the graph has a wrapper around."""
    known = {name for name, _ in model.named_modules()}
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(entry[0]).partition(".")[2] for entry in stack.values()]
    return _known(next((name for name in reversed(names) if name and name in known), ""))


def _place_of(node: torch.fx.Node) -> _Place:
    """The last line of the model's own code in the stack that torch.export noted."""
    found = _TRACED_LINE.findall(str(node.meta.get("stack_trace") or ""))
    own = [(file, int(line)) for file, line in found if not file.startswith(_TORCH)]
    return _Place(*own[-1]) if own else _Place()


def _scope_of(node: torch._C.Node) -> str:
    """From "net.Net::/net.Block::blocks.3/torch.nn.modules.linear.Linear::fc": blocks.3.fc."""
    names = [part.partition("::")[2] for part in str(node.scopeName()).split("/")]
    return _known(".".join(name for name in names if name).partition(".")[2])


def _known(name: str) -> str:
    return name.removeprefix(_OWN_PREFIX)
