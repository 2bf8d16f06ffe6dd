"""Charts as inline SVG beside a table of the same figures. Drawing needs matplotlib (extra `charts`)."""
