"""The optimiser of a session; the built-in networks are fitted with the same one."""

from edge_pslora.core.adamw import AdamW

__all__ = ["AdamW"]
