"""What torch prepares anew for each ONNX export is prepared once: half of a small session's time."""

from __future__ import annotations

import functools
import gc
import importlib
from typing import Any

_EXPORTER = "torch.onnx._internal.exporter"


def prepare_exports_once() -> None:
    """Keeps torch's registry of ONNX operators, its table of decompositions and the list it is split by.

    They depend on torch alone and no export changes them. They are private: another version of torch
    may do without, and then its exports take as long as they take.
    """
    registry = getattr(importlib.import_module(f"{_EXPORTER}._registration"), "ONNXRegistry", None)
    decompositions = importlib.import_module(f"{_EXPORTER}._decomp")
    table = getattr(decompositions, "create_onnx_friendly_decomposition_table", None)
    programs = importlib.import_module("torch.export.exported_program")
    composite = getattr(programs, "_collect_all_valid_cia_ops", None)
    if None in (registry, table, composite) or hasattr(registry, "is_kept"):
        return
    registry.is_kept = True
    registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
    programs._collect_all_valid_cia_ops = functools.cache(composite)  # torch copies what it gives
    kept = functools.cache(table)

    def copied(operators: set[Any]) -> dict[Any, Any]:
        return dict(kept(frozenset(operators)))  # the exporter takes entries out of it

    decompositions.create_onnx_friendly_decomposition_table = copied
    # asked of the same few lengths and products of them a million times
    expression = importlib.import_module("sympy").Expr
    expression.is_number = property(functools.cache(expression.is_number.fget))
    keep_templates()
    keep_what_is_loaded()


def keep_templates() -> None:
    """The code that Jinja makes of a template: a fifth of a session whose graph is there already."""
    environment = importlib.import_module("jinja2").Environment
    if hasattr(environment.compile, "is_kept"):
        return
    real, kept = environment.compile, dict[tuple[Any, ...], Any]()

    def compiled(self: Any, source: Any, *arguments: Any, **named: Any) -> Any:
        settings = (type(self), self.autoescape, self.trim_blocks, self.lstrip_blocks)
        key = (*settings, source, arguments, *named.items())
        if type(self) is not environment or not isinstance(source, str):
            return real(self, source, *arguments, **named)
        if key not in kept:
            kept[key] = real(self, source, *arguments, **named)
        return kept[key]

    compiled.is_kept = True  # type: ignore[attr-defined]
    environment.compile = compiled


def keep_what_is_loaded() -> None:
    """What is imported by now stays: no collection looks at it again, here and in forked children.

    Each session and each export asks for full collections, and one walks through all that torch's
    exporter, transformers and peft leave in a process: a third of a small session's time. In a forked
    child it also copies the pages that it walks through.
    """
    gc.collect()  # what is garbage by now is not to stay
    gc.freeze()
