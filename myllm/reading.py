"""Room: how texts are read: its settings → checked. Imports no torch.

Every verb that reads texts has these; `config.DataConfig` adds where the texts are.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from myllm.errors import ConfigError
from myllm.registry import check_choice

ENCODING_ERRORS = ("strict", "replace", "ignore")
ON_BAD_FILE = ("skip", "stop")
# codecs that are found as text encodings, but write characters as something else than characters
ESCAPES = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files become documents."""

    encoding: str = "utf-8"  # how the text files are encoded
    fallback_encoding: str | None = None  # of files that are not valid in it, such as latin-1
    encoding_errors: str = "strict"  # undecodable bytes: strict, replace, ignore
    text_field: str = "text"  # the field of JSON rows that holds the text, such as data.text
    separator: str | None = None  # what ends a document within a text, such as <|endoftext|>
    on_bad_file: str = "skip"  # files in folders, and JSON rows, without text: skip, stop

    def validate_reading(self) -> None:
        """Raises `ConfigError` for a value that cannot work."""
        check_choice("encoding_errors", self.encoding_errors, ENCODING_ERRORS)
        check_choice("on_bad_file", self.on_bad_file, ON_BAD_FILE)
        check_encoding("encoding", self.encoding)
        if self.fallback_encoding is not None:
            check_encoding("fallback_encoding", self.fallback_encoding)
        for name in ("text_field", "separator"):
            if getattr(self, name) == "":
                raise ConfigError(f"{name} '': must not be empty")


def check_encoding(setting: str, name: str) -> None:
    """Raises `ConfigError` unless `name` is a codec that turns bytes into text piece by piece."""
    try:
        codec = codecs.lookup(name)
        "".encode(name)  # not so with rot13 and base64
        usable = codec.name not in ESCAPES and codec.incrementaldecoder is not None
    except (LookupError, ValueError):
        usable = False
    if not usable:
        raise ConfigError(
            f"unknown {setting} {name!r}: take a Python codec of texts, such as utf-8, latin-1, "
            "cp1252, utf-16"
        )
