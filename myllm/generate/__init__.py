"""Room: the writing wing: prompt → text. Knows nothing of training."""

from myllm.generate.generator import TextGenerator

__all__ = ["TextGenerator"]
