"""Streams of real data, learned from the command line: one `edge-pslora adapt` a session."""
