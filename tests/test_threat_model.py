"""docs/threat-model.md names tests and sections of `make torture`: all of them are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.torture.sections import SECTIONS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") >= 4]
SHOWN = [line.rstrip("| ").rsplit("|", 1)[1] for line in ROWS if "shown by" not in line]


def _tests() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    return found


def test_every_threat_is_shown_by_a_test_or_a_section_that_exists():
    tests = _tests()
    assert len(SHOWN) > 30
    for shown in SHOWN:
        names = re.findall(r"`(test_\w+)`", shown)
        sections = re.findall(r"\*(\w+)\*", shown)
        assert names or sections, f"nothing shows it: {shown}"
        assert set(names) <= tests, shown
        assert set(sections) <= set(SECTIONS), shown


def test_every_section_shows_something():
    assert set(SECTIONS) <= set(re.findall(r"\*(\w+)\*", "\n".join(SHOWN)))
