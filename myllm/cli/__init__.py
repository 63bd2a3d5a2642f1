"""Room: the command line: arguments → screens and exit codes. Knows nothing of mathematics."""

from myllm.cli.main import main

__all__ = ["main"]
