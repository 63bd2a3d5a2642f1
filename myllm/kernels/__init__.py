"""Room: the wing of kernels: a model → the same model, computed faster. Knows nothing of text,
optimizers or the loop.

Those that `KERNELS` names replace modules of a model that is trained, in place: the model's own
file has no branches for them, and the weights keep their names (`plain`, `stand_ins`, `compiled`).
Text is written by one function for a whole pass (`decode_cpu`).
"""
