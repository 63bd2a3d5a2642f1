"""Room: the text wing: documents → token files → batches. Knows nothing of models."""
