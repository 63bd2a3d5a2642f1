"""Lets `python -m myllm` do what `myllm` does."""

from myllm.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
