"""Keys, roles and signed metadata (TUF, by python-tuf); knows nothing of models. No torch."""
