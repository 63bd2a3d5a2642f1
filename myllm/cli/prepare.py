"""Room: `myllm prepare`: texts → a folder of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from myllm.cli.parse import given
from myllm.cli.verb import Verb
from myllm.config import DataConfig
from myllm.errors import ConfigError
from myllm.system.importing import quick_imports


@dataclass(frozen=True)
class PrepareOptions:
    """Turn texts into a folder of tokens, to train on it later (myllm train FOLDER)."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm prepare novel.txt",
        "myllm prepare notes/ --out data/notes",
        "myllm prepare novel.txt --tokenizer char",
    )

    text: dict[str, Any] = given(DataConfig)
    vocab_size: int = 0  # tokens in the vocabulary (0: chosen from the length of the text)
    out: str | None = None  # the folder to make (None: one in data_dir, named after the text)
    debug: bool = False  # show the traceback of an error


def prepare(options: PrepareOptions) -> None:
    """Makes the folder, tells what is in it."""
    with quick_imports():
        from myllm import api
    from myllm.system.shell import quoted
    from myllm.system.terminal import say

    text = dict(options.text)
    if "val_split" in text:
        raise ConfigError(
            "--val-split belongs to myllm train: a prepared text can be split anyhow"
        )
    made = api.prepare(
        *text.pop("paths", ()), vocab_size=options.vocab_size, out=options.out, **text
    )
    say(
        f"{made.folder}: {made.n_characters:,} characters, {made.n_tokens:,} tokens, "
        f"{made.n_documents:,} document{'s' * (made.n_documents != 1)}, "
        f"vocabulary {made.tokenizer.vocab_size:,}",
        f"train on it with: myllm train {quoted(made.folder)}",
    )


VERB = Verb(PrepareOptions, prepare)
