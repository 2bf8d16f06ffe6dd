"""The pages that people look at: one HTML file each, no script, nothing loaded from anywhere."""
