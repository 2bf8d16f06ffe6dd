"""Colours that follow the page: what is drawn in a stand-in colour is written as a CSS variable.

matplotlib wants colours, a page in light and dark wants variables. Every colour of a drawing is a code
#01xxyy that nothing else uses; `css` gives what stands for it in the page's style sheet. The series
colours are those of Okabe and Ito (2008), darker on white and lighter on black, so that colour-blind
readers tell them apart; shapes and dashes differ too.
"""

from __future__ import annotations

import re

INK, SOFT, LINE, CARD, DEEP = "#010001", "#010002", "#010003", "#010004", "#010005"
SERIES = tuple(f"#01001{n}" for n in range(1, 9))
_NAMES = {INK: "ink", SOFT: "soft", LINE: "line", CARD: "card", DEEP: "on-heat"}
_NAMES |= {code: f"c{n}" for n, code in enumerate(SERIES, start=1)}
_MIXES = {2: ("heat", "card"), 3: ("c2", "c1"), 4: ("lost", "card"), 5: ("gained", "card")}
CODE = re.compile(r"#01[0-9a-f]{4}")


def heat(share: float) -> str:
    """0: the card's own colour, 1: the full colour of heat maps."""
    return _mix(2, share)


def age(share: float) -> str:
    """From the oldest (0) to the newest (1) of many series."""
    return _mix(3, share)


def change(share: float) -> str:
    """-1: all was lost, 0: the card's own colour, 1: the largest gain."""
    return _mix(4, -share) if share < 0 else _mix(5, share)


def css(code: str) -> str:
    """'#010011' -> 'var(--c1)'.

    Raises:
        ValueError: a colour that is no stand-in: it would not follow the page.
    """
    if code in _NAMES:
        return f"var(--{_NAMES[code]})"
    if not CODE.fullmatch(code) or int(code[3:5], 16) not in _MIXES:
        raise ValueError(f"colours of a drawing: expected stand-ins of palette.py; found {code}")
    of, into = _MIXES[int(code[3:5], 16)]
    return f"color-mix(in oklab, var(--{of}) {int(code[5:7], 16)}%, var(--{into}))"


def _mix(kind: int, share: float) -> str:
    return f"#01{kind:02x}{round(100 * min(max(share, 0.0), 1.0)):02x}"
