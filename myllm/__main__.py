"""The way into the program: `myllm` and `python -m myllm`."""

import signal

# Until the program handles Ctrl-C itself, one ends it at once: in the middle of an import, Python
# would show a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from myllm.cli.main import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
