"""Updates that are shipped: how they lie in a file, and how a receiver applies them. No torch."""
