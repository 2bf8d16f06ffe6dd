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
    # what is imported by now stays: the collector need not look at it during each export
    gc.collect()
    gc.freeze()
