"""Room: the wing of run folders: what is on disk. Knows nothing of training."""
