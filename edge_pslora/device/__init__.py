"""What a device does with a signed bundle: verify, apply, try, keep or go back. No torch."""
