"""Texts as files for tests of reading and preparing: made, written, read back."""

import random
from pathlib import Path

import numpy as np

from myllm.config import DataConfig
from myllm.data.prepare import prepare
from myllm.data.readers import read_pieces
from myllm.data.sources import find_sources

WORDS = "river stone lamp door cloud seven green walks sings über naïve 河 the a of and".split()


def words(n_characters, seed=1):
    """About so many characters of random words in lines."""
    rng = random.Random(seed)
    lines, size = [], 0
    while size < n_characters:
        lines.append(" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) + "\n")
        size += len(lines[-1])
    return "".join(lines)


def write(path, text, encoding="utf-8"):
    """Writes a text byte for byte; returns the path as a string."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return str(path)


def char_prepare(*paths, **settings):
    return prepare(DataConfig(tuple(map(str, paths)), tokenizer="char", **settings), 0)


def read(path, **settings):
    """The documents of a file, without a tokenizer."""
    config = DataConfig((path,), **settings)
    found = [""]
    for text, ends in (p for s in find_sources(config) for p in read_pieces(s, config)):
        found[-1] += text
        if ends:
            found.append("")
    return found[:-1]


def documents(made):
    """The documents of a token file, decoded."""
    ids, end = made.tokens(), made.tokenizer.eos_token_id
    assert ids[-1] == end
    cuts = np.flatnonzero(ids == end)
    starts = [0, *(cuts[:-1] + 1)]
    return [made.tokenizer.decode(ids[a:b].tolist()) for a, b in zip(starts, cuts)]


def prepared_folders(where="data"):
    return sorted(path.name for path in Path(where).glob("*") if path.is_dir())
