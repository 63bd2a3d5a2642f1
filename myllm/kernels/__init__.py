"""Room: the wing of kernels: what PyTorch computes in many small steps, in one. Optional."""
