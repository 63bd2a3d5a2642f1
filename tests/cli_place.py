"""What tests of the command line share: a tiny model's flags, texts, results, settings."""

import hashlib
import os
import random
from pathlib import Path
from types import SimpleNamespace

import myllm
from myllm.cli.parse import parse
from myllm.cli.train import TrainOptions
from myllm.config import read_toml
from myllm.presets import resolve

TINY = (
    "--d-model 32 --n-layers 1 --n-heads 2 --context-length 16 --batch-size 4 --max-steps 6 "
    "--eval-interval 3 --device cpu --dtype float32"
).split()
WORDS = "moon river lamp door walks sings and the a of over under green old new sea".split()
ROOT = Path(myllm.__file__).parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def words(n_characters=20_000, seed=1):
    """About so many characters of random words in lines."""
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 10))) for _ in range(n_characters // 30)]
    return "\n".join(lines) + "\n"


class Result(SimpleNamespace):
    """Exit code, standard output, lines of standard error."""


def assert_refused(result, code, *words, announced=0):
    """One line on stderr (after so many announcements), no traceback, with these words."""
    assert result.code == code, result.err
    assert "Traceback" not in result.err + result.out
    assert len(result.lines) == 1 + announced, result.err
    assert result.lines[-1].startswith("myllm: ")
    for word in words:
        assert word in result.lines[-1], result.lines[-1]


def hashes(folder):
    """Path → SHA-256 of every file in a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def leftovers():
    """Files and folders that were never finished."""
    return [path for path in Path(".").rglob(".tmp*")]


def resolved(*args):
    """The settings of `myllm train ARGS`, as they are resolved where there is no GPU."""
    options = parse(TrainOptions, "train", list(args))
    file = read_toml(Path(options.config)) if options.config else {}
    return resolve(file=file, flags=options.settings)


def parsed(*args, size="cpu"):
    """The configuration of `myllm train ARGS`; the size does not depend on the machine."""
    return resolved("--size", size, *args).config
