"""Room: the computer: device, memory, disk, signals, terminal. Knows nothing of models."""
