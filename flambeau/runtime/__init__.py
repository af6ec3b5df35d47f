"""The ground under training: devices, determinism, seeds, signals."""
