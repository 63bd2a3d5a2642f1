"""Room: `python -m myllm.train` is `myllm train`."""

import sys

from myllm.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
