"""Methods side by side on the same stream: what they are, how they are run, what the figures show."""
