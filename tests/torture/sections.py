"""The sections, in the order of the table. Imported one by one: some load torch, some must not."""

from __future__ import annotations

import importlib
from typing import cast

from tests.torture.plan import Section

SECTIONS = ("kills", "power", "space", "readers", "endurance", "signed", "hostile", "poison")


def load_section(name: str) -> Section:
    return cast(Section, importlib.import_module(f"tests.torture.{name}"))
