"""Methods that are no LoRA session of the one trainer."""
