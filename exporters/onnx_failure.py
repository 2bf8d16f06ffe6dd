"""Where in the user's model an exporter gave up: the module, the line, the operator.

torch wraps the cause in pages of advice. What a user can act on is in the frames of its traceback: the
module whose forward was running, or the node of the graph that was being translated.
"""

from __future__ import annotations

import linecache
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from edge_pslora.models.failures import FOREIGN_ERRORS, first_line

_TORCH = str(Path(torch.__file__).parent)
_OTHERS = (_TORCH, str(Path(__file__).parent), str(Path(logging.__file__).parent))
# A classifier's parts are `backbone` and `head`; the names that users know start below the former.
_OWN_PREFIX = "backbone."
_TRACED_LINE = re.compile(r'File "([^"]+)", line (\d+)')
# colours; asides; what was asked for
_NOISE = re.compile(
    r"\x1b\[[0-9;]*m|\(unhinted: .*"
    r"|Received user-specified dim hint .*, but |\[ONNXRuntimeError\] : \d+ : \w+ : "
)
_LONGEST = 120  # characters of a reason
_CODE = 60  # and of a line of code


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
    def what(self) -> str:
        """The reason, and what it was at."""
        return self.reason + (f" at {self.at}" if self.at else "")

    @property
    def line(self) -> str:
        """The same, and where."""
        return self.what + (f" in {self.where}" if self.where else "")


@dataclass(frozen=True)
class _Place:
    """file "": unknown."""

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
    causes = list(_causes(problem))
    spot = find_spot((pair for error in causes for pair in _frames(error)), model)
    return Failure(spot.where, spoken(causes[-1]), spot.at)


@dataclass(frozen=True)
class Spot:
    """module: its name, "" is the model itself, None: outside; place: the line of the model's own code;
    node: of the graph, in words."""

    module: str | None = None
    place: _Place = _Place()
    node: str = ""

    @property
    def where(self) -> str:
        if self.place.name:
            return f"{self.module or 'the model'} ({self.place.name})"
        return self.module or ""

    @property
    def at(self) -> str:
        return self.node or (f"`{_short(self.place.code, _CODE)}`" if self.place.code else "")


def find_spot(frames: Iterable[tuple[FrameType, int]], model: nn.Module) -> Spot:
    """Where the model is in a stack of frames, each with its line, the innermost last."""
    paths = {id(module): _known(name) for name, module in model.named_modules()}
    spot = Spot()
    for frame, line in frames:
        running = paths.get(id(frame.f_locals.get("self")))
        spot = spot if running is None else replace(spot, module=running)
        if spot.module is not None and not _of_others(frame):
            spot = replace(spot, place=_Place(frame.f_code.co_filename, line))
        handled = frame.f_locals.get("node")
        if isinstance(handled, torch.fx.Node) and handled.op != "output":
            node = f"node {handled.name} ({handled.target})"
            spot = Spot(_module_of(handled, model) or spot.module, _place_of(handled), node)
        elif isinstance(handled, torch._C.Node):
            spot = Spot(_scope_of(handled) or spot.module, spot.place, f"node {handled.kind()}")
    return spot


def fixed_size(
    model: nn.Module,
    example: Mapping[str, torch.Tensor],
    dynamic_axes: Mapping[str, tuple[str, ...]],
) -> Failure | None:
    """Where the model itself fails with one more along a free axis than in `example`; None: nowhere.

    torch.export finds a fixed size only after it has traced everything, and does not say where.
    """
    for axis in dict.fromkeys(axis for axes in dynamic_axes.values() for axis in axes if axis):
        grown = one_more(example, dynamic_axes, axis)
        try:
            with torch.no_grad():
                model(**grown)
        except FOREIGN_ERRORS as problem:
            found = failure(problem, model)
            return Failure(
                found.where, f"another size of the axis {axis}: {found.reason}", found.at
            )
    return None


def one_more(
    example: Mapping[str, torch.Tensor],
    dynamic_axes: Mapping[str, tuple[str, ...]],
    only: str | None = None,
) -> dict[str, torch.Tensor]:
    """The example with its first entry once more along every free axis, or along those called `only`."""
    grown = {}
    for name, tensor in example.items():
        for position, axis in enumerate(dynamic_axes.get(name, ())):
            if axis and only in (None, axis):
                tensor = torch.cat([tensor, tensor.narrow(position, 0, 1)], dim=position)
        grown[name] = tensor
    return grown


def spoken(problem: BaseException) -> str:
    """The first line that says something, without colours and asides, and not too long."""
    reason = first_line(problem)
    lines = [line.strip(" -\t") for line in str(problem).splitlines() if line.strip()]
    if reason.endswith(":") and len(lines) > 1:  # it only announces a list
        reason = f"{type(problem).__name__}: {lines[1]}"
    return _short(" ".join(_NOISE.sub("", reason).split()).rstrip("."))


def _short(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


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


def _of_others(frame: FrameType) -> bool:
    """Not of the model: of torch, of this exporter, of logging, or of code without a file."""
    return frame.f_code.co_filename.startswith((*_OTHERS, "<"))


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
