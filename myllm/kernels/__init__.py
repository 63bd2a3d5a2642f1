"""Room: the kernels wing: a model → the same model, computed faster. Knows nothing of text,
optimizers or the loop.

Kernels are what `KERNELS` names. They replace modules of a model in place, so that the model's own
file has no branches for them, and the weights keep their names.
"""
