"""Room: what a flag's value can be: a name of a table, a run, a file. For help and completion.

A few whose tables need torch or numpy are named here once more, as help must answer at once; a
test compares them. What is not in a table is refused where it is looked up, not here.
"""

from __future__ import annotations

from collections.abc import Collection

from myllm import config, kinds, reading
from myllm.cli.parse import Flag
from myllm.presets import PRESETS, SIZES

CHOICES: dict[str, Collection[str]] = {
    "preset": tuple(PRESETS),
    "size": tuple(SIZES),
    **kinds.TABLES,
    "data": ("shakespeare",),
    "device": ("cpu", "cuda", "mps"),
    "quantize": ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
    "position": config.POSITIONS,
    "dtype": config.DTYPE_NAMES,
    "val_split": config.VAL_SPLITS,
    "on_nonfinite": config.ON_NONFINITE,
    "on_disk_full": config.ON_DISK_FULL,
    "encoding_errors": reading.ENCODING_ERRORS,
    "on_bad_file": reading.ON_BAD_FILE,
    "shell": ("bash", "zsh", "fish"),
}
RUN, FILE, FOLDER = "RUN", "FILE", "FOLDER"
PLACES = {
    "run": RUN, "resume": RUN, "from_run": RUN, "runs": RUN,
    "paths": FILE, "config": FILE, "out": FILE, "path": FOLDER, "runs_dir": FOLDER,
    "data_dir": FOLDER,
}  # fmt: skip
NUMBERS = {int: "N", float: "X"}


def noun(flag: Flag) -> str:
    """What help calls the value of a flag."""
    if flag.positional:
        return flag.flag.upper()
    if flag.name in CHOICES:
        return "NAME"
    number = next((NUMBERS[kind] for kind in flag.kinds if kind in NUMBERS), "TEXT")
    return PLACES.get(flag.name, number)
