"""README.md of a generation or an adapter: the header that Hugging Face reads, and what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge_pslora.workspace import durable

CARD_FILE = "README.md"
TAGS = ("edge-pslora", "continual-learning", "lora")
_LABELS_SHOWN = 50


@dataclass(frozen=True)
class ModelCard:
    """What the card says.

    library: who loads the weights. base_model: its name, None for a network made here. tags: beside
    TAGS. facts: shown as a table, in order. usage: Python lines that load the folder.
    """

    title: str
    library: Literal["transformers", "peft", "pytorch"]
    base_model: str | None = None
    tags: Sequence[str] = ()
    labels: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    usage: str = ""


def write_card(folder: Path, card: ModelCard) -> Path:
    """Write README.md durably."""
    path = folder / CARD_FILE
    durable.write_bytes(path, card_text(card).encode())
    return path


def card_text(card: ModelCard) -> str:
    """The card as Markdown; the same card gives the same text."""
    # a JSON string is a YAML string too, whatever is in it
    lines = ["---", f"library_name: {card.library}"]
    if card.base_model:
        lines.append(f"base_model: {json.dumps(card.base_model)}")
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in dict.fromkeys((*TAGS, *card.tags)))]
    lines += ["---", "", f"# {_flat(card.title)}", ""]
    lines += ["Adapted on a device with edge-pslora: low-rank updates (LoRA), merged session after"]
    lines += ["session so that earlier sessions are kept.", ""]
    if card.facts:
        lines += ["| what | value |", "|---|---|"]
        lines += [f"| {_flat(name)} | {_flat(value)} |" for name, value in card.facts.items()]
        lines.append("")
    if card.labels:
        shown = [_flat(label) for label in card.labels[:_LABELS_SHOWN]]
        more = len(card.labels) - len(shown)
        lines += [f"Labels: {', '.join(shown)}{f' and {more} more' if more else ''}.", ""]
    if card.usage:
        lines += ["```python", card.usage.rstrip(), "```", ""]
    return "\n".join(lines)


def _flat(value: Any) -> str:
    """One table cell: no line breaks, no cell borders, no HTML."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    return text.replace("<", "&lt;").replace(">", "&gt;")
